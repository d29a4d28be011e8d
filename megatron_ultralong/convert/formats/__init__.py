"""Weights on disk, read and written by rows: safetensors, pickles, Hugging Face folders, torch_dist."""
