"""What every reader of a sharded checkpoint needs: what it says of itself, and its metadata read safely."""
