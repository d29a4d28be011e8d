"""Which documents are trained on and how often: the length policy, and the list on disk."""
