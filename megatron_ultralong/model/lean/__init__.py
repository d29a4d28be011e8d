"""The memory-lean transformer layer (parallel.head_groups)."""
