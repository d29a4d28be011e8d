"""Training's own model as an evaluation backend: the layouts and kernels of the engine, and a KV cache over the ranks."""
