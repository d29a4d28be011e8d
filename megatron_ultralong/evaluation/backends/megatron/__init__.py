"""Training's own model as a backend: the engine's layouts and kernels, and a KV cache over the ranks."""
