"""The proof: retrieval at every depth and length, perplexity by position, the short task, one report."""
