"""Word n-grams that a corpus shares with evaluation samples, and the list of documents that do not."""
