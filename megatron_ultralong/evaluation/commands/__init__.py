"""What tools/evaluate.py does: a file a command."""
