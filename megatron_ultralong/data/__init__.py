"""From text to the batch on a rank: tokenize, resample, pack, read, blend (docs/data_flow.md has the picture)."""
