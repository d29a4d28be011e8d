"""Proof that a conversion is right: checksums of every tensor, logits of both models, where two models part."""
