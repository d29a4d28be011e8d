"""How a rank's attention heads go over the ranks that exchange heads for sequence. Pure arithmetic, no torch."""

from __future__ import annotations


def ulysses_problem(heads: int, kv_heads: int, ulysses: int) -> str | None:
    """Why these heads of one rank cannot be spread over `ulysses` ranks, or None: they can."""
    if heads % ulysses:
        return f"which does not divide a rank's {heads} attention heads; give a divisor of {heads}."
    if kv_heads % ulysses and ulysses % kv_heads:
        return (
            f"neither a divisor nor a multiple of a rank's {kv_heads} key-value heads; "
            f"give a divisor of {heads} that is one."
        )
    return None
