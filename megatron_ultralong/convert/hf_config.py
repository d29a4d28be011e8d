"""config.json of an exported model: the one it started from, with the rope and the dtype it has now.

An entry is either stated whole or not at all, so that no loader completes it in its own way: what a loader would take
by default is written out, which layers attend to how much is said anew, and what names code files that an export lacks
is left out. transformers 4 spells rope as rope_theta + rope_scaling, transformers 5 as rope_parameters. An export uses
the first, which both read, and drops the second, so that no stale entry contradicts. What config.json has no place for
is folded into the weights, exactly, or refused: see `served`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import WINDOWS, completed, loader_of
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.scaling import RopeScaling, longrope_attention

_DTYPE_ENTRIES = ("torch_dtype", "dtype")
_CODE = ("auto_map", "custom_pipelines")
"""Entries that name files of code, which are not exported: what is exported is what transformers itself computes."""


def served(config: dict[str, Any], rope: RopeScaling) -> tuple[RopeScaling, float]:
    """The rope that config.json can state in the place of `rope`, and what makes up for the difference.

    cos and sin times m is queries and keys times m, so logits times m squared in the rotated channels: the same as
    the rotated channels of the queries alone times m squared, which weights can hold. So for every kind whose
    config.json entry has no place for m, the entry says 1 and the queries are scaled. Phi-3's code takes no kind but
    longrope; any frequencies can be said by its lists, with the m that its readers derive.

    Args:
        config: the model's config.json.
        rope: the rope it was trained with.

    Returns:
        the rope to state, and the factor of the rotated channels of the queries: 1 where nothing is folded.
    """
    phi = config.get("model_type") == "phi3"
    if phi and rope.kind not in ("none", "longrope"):
        stated = _as_longrope(config, rope)
    elif phi and rope.kind == "longrope":  # transformers 4 refuses a fourth key, and vLLM does not read it
        stated = _with_derived_attention(rope)
    elif rope.kind == "ntk":  # a plain rope of another base, and Hugging Face has no other form of it
        dim = rope.rotary_dim(config_json.head_dim(config))
        stated = dataclasses.replace(rope, kind="none", base=rope.ntk_base(dim), factor=1.0, attention_factor=1.0)
        stated = dataclasses.replace(stated, original_length=rope.length, declared_length=0)
    elif config_json.states_attention_factor(rope):
        stated = rope
    else:
        stated = dataclasses.replace(rope, attention_factor=1.0)
    return stated, (rope.attention_factor / stated.attention_factor) ** 2


def _as_longrope(config: dict[str, Any], rope: RopeScaling) -> RopeScaling:
    """The same frequencies as longrope's lists, with the attention factor that readers derive from the lengths."""
    if rope.kind == "dynamic-ntk":
        raise UserError("rope kind 'dynamic-ntk' of a phi3 model has no Hugging Face form: its lists are fixed.")
    dim = rope.rotary_dim(config_json.head_dim(config))
    plain = dataclasses.replace(rope, kind="none").inverse_frequencies(dim)
    factors = tuple((plain / rope.inverse_frequencies(dim)).tolist())
    lists = RopeScaling(
        base=rope.base,
        kind="longrope",
        factor=rope.length / rope.original_length,
        original_length=rope.original_length,
        rotary_fraction=rope.rotary_fraction,
        short_factors=factors,
        long_factors=factors,
    )
    return _with_derived_attention(lists)


def _with_derived_attention(rope: RopeScaling) -> RopeScaling:
    """A longrope that its lists and the two lengths say: with the factor and the attention that readers derive."""
    ratio = rope.length / rope.original_length
    attention = longrope_attention(ratio, rope.original_length)
    return dataclasses.replace(rope, factor=ratio, declared_length=0, attention_factor=attention)


def with_rope(config: dict[str, Any], rope: RopeScaling) -> dict[str, Any]:
    """`config` with the entries that serve `rope`, and no others about it; weights must be folded as `served` says.

    Args:
        config: a config.json, in either spelling.
        rope: the rope that the model was trained with.

    Raises:
        UserError: Hugging Face has no form for this rope.
    """
    kept = {name: value for name, value in config.items() if name not in config_json.ENTRIES}
    return kept | config_json.write(served(config, rope)[0])


def with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """`config` with torch_dtype naming the dtype of the exported weights."""
    kept = {name: value for name, value in config.items() if name not in _DTYPE_ENTRIES}
    return kept | {"torch_dtype": str(dtype).removeprefix("torch.")}


def exported(description: Description, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a checkpoint's export: its rope, its dtype, attention to the whole sequence, as it was trained.

    Raises:
        UserError: Hugging Face has no form for the rope.
    """
    config = with_dtype(with_rope(completed(description.hf_config), description.rope), dtype)
    kept = {name: value for name, value in config.items() if name not in (*WINDOWS, *_CODE)}
    found = loader_of(config)
    if found is not None and "sliding_window" in found[1].defaults:  # else the loader would take its default
        kept["sliding_window"] = None
    if found is not None and found[1].window == "by layer":
        kept["use_sliding_window"] = False
    return kept
