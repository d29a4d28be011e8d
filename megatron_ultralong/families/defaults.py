"""What a config.json means where it says nothing: the effective configuration, as the family's loader makes it.

transformers builds a model from its own configuration class, whose defaults are part of what a published config.json
says: a Mistral without `sliding_window` attends to 4,096 tokens. Here these defaults are written out, so that training,
conversion and planning read one and the same configuration, and an export states all of it. A test compares every
entry with the classes of the oldest and the newest transformers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from megatron_ultralong.errors import UserError

_COMMON: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_BY_LAYER = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_QWEN = _COMMON | _BY_LAYER | {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}


@dataclasses.dataclass(frozen=True)
class Loader:
    """How transformers reads the config.json of one family.

    Attributes:
        model_type: its name there, by which the configuration class is chosen.
        window: which layers attend to `sliding_window` tokens: every one, those that `layer_types` or
            `max_window_layers` name, or, in a family that has no windows, none.
        defaults: what is taken where config.json says nothing.
        partial: whether its code can rotate a part of a head's channels.
        ropes: kinds of rope that its configuration class takes; empty: all.
    """

    model_type: str
    window: Literal["none", "all", "by layer"]
    defaults: dict[str, Any]
    partial: bool = False
    ropes: tuple[str, ...] = ()


LOADERS: dict[str, Loader] = {
    "LlamaForCausalLM": Loader(
        "llama",
        "none",
        _COMMON
        | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048}
        | {"num_key_value_heads": None, "head_dim": None, "attention_bias": False, "mlp_bias": False},
    ),
    "MistralForCausalLM": Loader(
        "mistral",
        "all",
        _COMMON
        | {"vocab_size": 32000, "intermediate_size": 14336, "max_position_embeddings": 131072}
        | {"num_key_value_heads": 8, "head_dim": None, "sliding_window": 4096},
    ),
    "Qwen2ForCausalLM": Loader("qwen2", "by layer", _QWEN | {"num_key_value_heads": 32}),
    "Qwen3ForCausalLM": Loader(
        "qwen3", "by layer", _QWEN | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False}
    ),
    "Phi3ForCausalLM": Loader(
        "phi3",
        "all",
        _COMMON
        | {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096}
        | {"num_key_value_heads": None, "rms_norm_eps": 1e-5, "sliding_window": None},
        partial=True,
        ropes=("none", "longrope"),
    ),
}
"""By config.json's `architectures`. An architecture without a loader has what `_COMMON` says of the norms."""
WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
"""Entries that say together which layers attend to how many tokens."""
_NULL_MEANS_ALL = ("num_key_value_heads", "head_dim", "sliding_window")


def loader_of(config: dict[str, Any]) -> tuple[str, Loader] | None:
    """The architecture and the loader that read a config.json: by `architectures`, or by `model_type` alone."""
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return (named[0], LOADERS[named[0]]) if named[0] in LOADERS else None
    by_type = ((name, loader) for name, loader in LOADERS.items() if loader.model_type == config.get("model_type"))
    return next(by_type, None) if named is None else None


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with its loader's defaults where it says nothing, and its own name; again, it changes nothing.

    Raises:
        UserError: an entry is null for which the loader takes no null, or its two names are of two families.
    """
    found = loader_of(config)
    if found is None:
        given = {name: value for name, value in config.items() if value is not None}
        return {**config, "rms_norm_eps": _COMMON["rms_norm_eps"], **given}
    architecture, loader = found
    stated = config.get("model_type") or loader.model_type
    if stated != loader.model_type:
        raise UserError(
            f"config.json: model_type is {stated!r} and architectures {architecture!r}, of which loaders take one or "
            f"the other; set model_type to {loader.model_type!r}, or mend architectures."
        )
    for name, value in loader.defaults.items():
        if value is not None and config.get(name, value) is None and name not in _NULL_MEANS_ALL:
            raise UserError(f"config.json: {name} is null, for which its loader has no meaning; state it or remove it.")
    if loader.defaults.get("head_dim") and config.get("head_dim", 1) is None:
        raise UserError("config.json: head_dim is null, for which its loader has no meaning; state it or remove it.")
    out = {**loader.defaults, **config, "model_type": loader.model_type, "architectures": [architecture]}
    heads, width = out["num_attention_heads"], out["hidden_size"]
    if out.get("num_key_value_heads") is None:
        out["num_key_value_heads"] = heads
    if "head_dim" in out and out["head_dim"] is None and type(heads) is int and type(width) is int and heads > 0:
        out["head_dim"] = width // heads
    return out


def window_of(config: dict[str, Any]) -> int | None:
    """Tokens that the narrowest layer attends to; None: every layer attends to all of them.

    Args:
        config: a config.json, completed.

    Raises:
        UserError: an entry is of the wrong type, or contradicts another.
    """
    window, types = config.get("sliding_window"), config.get("layer_types")
    if window is not None and (type(window) is not int or window < 1):
        raise UserError(f"config.json: sliding_window is {window!r}; give null or tokens.")
    found = loader_of(config)
    if found is None or found[1].window != "by layer":
        return window if config.get("use_sliding_window", True) else None
    if not config["use_sliding_window"]:
        window = None  # as Qwen2Config does
    if types is None:
        sliding = window is not None and config["max_window_layers"] < config["num_hidden_layers"]
        return window if sliding else None
    if not isinstance(types, list) or {"full_attention", "sliding_attention", *map(str, types)} != {
        "full_attention",
        "sliding_attention",
    }:
        raise UserError(f"config.json: layer_types is {types!r}; known: full_attention and sliding_attention.")
    if "sliding_attention" in types and window is None:
        raise UserError(
            "config.json: layer_types has sliding_attention, but there is no sliding_window in use; set every entry to "
            "full_attention, or remove layer_types."
        )
    return window if "sliding_attention" in types else None


def check_window(config: dict[str, Any], length: int) -> None:
    """Refuse a window narrower than the context of `length` tokens: only whole attention is computed here.

    Raises:
        UserError: there is one.
    """
    window = window_of(config)
    if window is not None and window < length:
        raise UserError(
            f"config.json: sliding_window {window} (stated, or what {config.get('model_type')} takes where nothing is) "
            f"is less than the context of {length} tokens and not supported; set it to null for a model that is to "
            "attend to the whole sequence."
        )
