"""Attention over a sequence that is spread across ranks: the zig-zag layout, kernels, the ring."""
