"""Arithmetic before and beside a run: FLOPs, memory, time. No torch, no processes."""
