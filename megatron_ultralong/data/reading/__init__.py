"""Packed samples to the batch on a rank: the dataset, the blend of several, and a look at samples."""
