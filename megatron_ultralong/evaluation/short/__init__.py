"""Short-context benchmarks through lm-evaluation-harness: what long training must not cost."""
