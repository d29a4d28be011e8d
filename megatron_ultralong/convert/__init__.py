"""Weights both ways: Hugging Face folders and megatron-core's dist_checkpointing directories."""
