"""The only room that knows megatron-core's version, its private symbols and the device.

Importing it changes nothing; `device.use` switches the CPU backend on where it is needed.
"""
