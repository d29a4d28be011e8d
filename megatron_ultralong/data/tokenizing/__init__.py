"""Files of text to a tokenized corpus: shards, readers, worker processes, parts, and their merge."""
