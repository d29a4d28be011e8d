"""A training step of any rank of any cluster on a laptop: the real code, on tensors without memory, counted."""
