"""The training loop: continued pretraining and instruction tuning are the same loop on different data."""
