"""config.json of an exported model: the one it started from, with the rope and the dtype it has now.

transformers 4 spells rope as rope_theta + rope_scaling, transformers 5 as rope_parameters. An export uses the
first, which both read, and drops the second, so that no stale entry contradicts.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_ultralong.model.rope import RopeScaling

_ROPE_ENTRIES = ("rope_parameters", "rope_scaling", "rope_theta")
_DTYPE_ENTRIES = ("torch_dtype", "dtype")


def with_rope(config: dict[str, Any], rope: RopeScaling, head_dim: int) -> dict[str, Any]:
    """`config` with the entries that serve `rope`, and no others about it.

    Args:
        config: a config.json, in either spelling.
        rope: the rope to state.
        head_dim: head size H, from which "ntk" gets its base.

    Raises:
        UserError: Hugging Face has no form for this rope.
    """
    if rope.kind == "ntk":  # base * s^(d / (d - 2)) is a plain rope, and Hugging Face has no other form of it
        base = rope.base * rope.factor ** (head_dim / (head_dim - 2))
        rope = RopeScaling(base=base, original_length=rope.length)
    kept = {name: value for name, value in config.items() if name not in _ROPE_ENTRIES}
    return kept | rope.to_hf()


def with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """`config` with torch_dtype naming the dtype of the exported weights."""
    kept = {name: value for name, value in config.items() if name not in _DTYPE_ENTRIES}
    return kept | {"torch_dtype": str(dtype).removeprefix("torch.")}
