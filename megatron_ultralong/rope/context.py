"""The context a model was made for, where config.json's entries leave it open; pure arithmetic.

For most kinds the loader's formula says it. A linear entry is the exception: its formula needs the factor alone, and
two conventions are published for max_position_embeddings, the context before scaling (as transformers' documentation
asked at first, and vLLM reads it) and the one after it (as it asks since). Which one decides what a new scaling is
counted from, so where nothing tells, the user is asked.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.rope.scaling import RopeScaling

_CONTEXT_NAMES = ("max_sequence_length", "model_max_length", "max_seq_len", "seq_length")
"""Top-level entries in which publishers say the whole context besides."""


def linear_original(config: dict[str, Any], factor: float, maximum: int, stated: int, known: int) -> int:
    """The context before linear scaling.

    Args:
        config: a config.json.
        factor: of the entry.
        maximum: max_position_embeddings.
        stated: original_max_position_embeddings, or 0.
        known: what the user says, or 0.

    Raises:
        UserError: nothing tells whether `maximum` is the context before or after scaling.
    """
    before, after = maximum, max(1, round(maximum / factor))
    if stated or known:
        return stated or known
    if before == after:
        return before
    said = {config.get(name) for name in _CONTEXT_NAMES}
    if (maximum in said) != (round(maximum * factor) in said):
        return after if maximum in said else before
    raise UserError(
        f"config.json: the rope is linear by {factor:g} and max_position_embeddings {maximum}, but not whether that is "
        f"the context before scaling or after it; state original_max_position_embeddings {before} or {after} there, or "
        "rope.original_length (--original-length of a conversion)."
    )


def declared(rope: RopeScaling, maximum: int) -> RopeScaling:
    """`rope` with the length that the model declares, if it says more than the entry that was added to it.

    A yarn entry is often added to a config.json whose maximum still is the original length (Qwen's manual says so),
    and stacks read yarn's ratio of the two. llama3's factor is read as it stands, so a published maximum that is
    less than factor x original, as Llama-3.2's, is what the model was made for.
    """
    less = rope.kind == "llama3" and rope.original_length < maximum < rope.length
    return dataclasses.replace(rope, declared_length=maximum) if less or maximum > rope.length else rope
