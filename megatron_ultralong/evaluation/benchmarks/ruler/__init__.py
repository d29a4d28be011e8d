"""RULER's 13 tasks at any length, with any tokenizer."""
