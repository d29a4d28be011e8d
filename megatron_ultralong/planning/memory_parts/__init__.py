"""What a training step holds, part by part; `planning.memory.predict` puts them together."""
