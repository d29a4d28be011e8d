"""How config.json spells a rope: read in every way transformers has written it, written in the one that serves.

transformers 4 has rope_theta beside rope_scaling (with `type`, later `rope_type`), transformers 5 one dictionary
rope_parameters; partial_rotary_factor and original_max_position_embeddings stand in either or beside them. What
is written is transformers 4's spelling, which 5, vLLM and SGLang read too. Nothing is dropped on the way: a key that
nobody here knows is an error, because ignoring it would compute another model.
"""

from __future__ import annotations

import math
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import check_window, completed, loader_of
from megatron_ultralong.rope.context import declared, linear_original
from megatron_ultralong.rope.scaling import RopeScaling, longrope_attention, temperature

ENTRIES = (
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
"""Top-level entries of config.json that `write` owns; max_position_embeddings is its too."""
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")
_KNOWN = frozenset(
    "rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings attention_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate low_freq_factor high_freq_factor short_factor long_factor "
    "attn_factor finetuned max_position_embeddings".split()  # the last two stand in published files and change nothing
)


_LEAST = {"factor": 1, "max_position_embeddings": 1, "original_max_position_embeddings": 1}


def read(config: dict[str, Any], original_length: int = 0) -> RopeScaling:
    """The rope of a config.json, with transformers' defaults for what is not said.

    Args:
        config: a config.json.
        original_length: tokens of context before scaling, where config.json does not say it; 0: not known.

    Raises:
        UserError: a kind or key that this project does not compute, a value that can't be, a part missing, two
            entries that contradict each other, a context that cannot be known, or one that layers look at in part.
    """
    config = completed(config)
    entries = {name: config[name] for name in ("rope_scaling", "rope_parameters") if config.get(name)}
    ropes = {
        name: _read_entry(config, entry, name, original_length)
        for name, entry in (entries or {"rope_scaling": {}}).items()
    }
    first, *others = ropes.values()
    if others and others[0] != first:
        raise UserError(
            "config.json: rope_scaling and rope_parameters state different ropes; keep the one that the model has."
        )
    _check_loader(config, first)
    check_window(config, first.length)
    return first


def _check_loader(config: dict[str, Any], rope: RopeScaling) -> None:
    """Refuse what the family's own code does not compute, or its configuration class does not take."""
    found = loader_of(config)
    if found is None:
        return
    architecture, loader = found
    if rope.rotary_fraction != 1.0 and not loader.partial:
        raise UserError(
            f"config.json: partial_rotary_factor is {rope.rotary_fraction}, but {architecture} rotates whole heads; "
            "remove it, or name another architecture."
        )
    if loader.ropes and rope.kind not in loader.ropes:
        raise UserError(
            f"config.json: {architecture} takes no rope of kind {rope.kind!r}; known: {', '.join(loader.ropes)}."
        )


def head_dim(config: dict[str, Any]) -> int:
    """Channels of one attention head, of which `RopeScaling.rotary_dim` are rotated."""
    config = completed(config)
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _read_entry(config: dict[str, Any], entry: Any, where: str, known: int) -> RopeScaling:
    """The rope that one of the two dictionaries states."""
    entry = _checked(entry, where)
    kind = _kind(config, entry)
    maximum = int(_number(config, "max_position_embeddings", 2048))
    given: dict[str, Any] = {
        "base": _either(config, entry, "rope_theta", 10000.0),
        "rotary_fraction": _either(config, entry, "partial_rotary_factor", 1.0),
        "original_length": maximum,
    }
    factor = _number(entry, "factor", None)
    if kind == "default":
        return RopeScaling(**given)
    if kind in ("linear", "dynamic") and factor is None:
        raise UserError(f"config.json: the {kind} rope entry has no factor; add it.")
    if kind == "dynamic":  # transformers measures from max_position_embeddings, whatever else is said
        return RopeScaling(**given, kind="dynamic-ntk", factor=factor)
    stated = _either(config, entry, "original_max_position_embeddings", 0)
    if kind == "linear":
        original = linear_original(config, factor, maximum, int(stated), known)
        given |= {"kind": "linear", "factor": factor, "original_length": original}
        return declared(RopeScaling(**given), maximum)
    phi = 4096 if config.get("model_type") == "phi3" else maximum  # Phi3Config's own default
    original = int(stated or phi)
    given |= {"original_length": original, "factor": maximum / original if factor is None else factor}
    ramp = {"llama3": _llama3, "yarn": _yarn, "longrope": _longrope}[kind]
    return declared(RopeScaling(**given | ramp(entry, given["factor"], original)), maximum)


def _either(config: dict[str, Any], entry: dict[str, Any], name: str, default: float) -> float:
    """A number that may stand in the entry or beside it; in both, it must be the same."""
    inside, beside = _number(entry, name, None), _number(config, name, None)
    if inside is not None and beside is not None and inside != beside:
        raise UserError(
            f"config.json: {name} is {beside:g}, and {inside:g} in the rope's entry, of which loaders take one or the "
            "other; keep the one that the model has."
        )
    return float(next((value for value in (inside, beside) if value), default))


def _checked(entry: Any, where: str) -> dict[str, Any]:
    """`entry` if it is one flat dictionary of keys we know."""
    if not isinstance(entry, dict):
        raise UserError(f"config.json: {where} is {entry!r}; it must be an object or null.")
    layers = sorted(name for name, value in entry.items() if isinstance(value, dict))
    if layers:
        raise UserError(
            f"config.json: {where} differs by layer type ({', '.join(layers)}); a model with more than one rope is not "
            "supported."
        )
    unknown = sorted(name for name in entry if name not in _KNOWN)
    if unknown:
        raise UserError(
            f"config.json: {where} has {', '.join(unknown)}, which this project does not compute; remove what changes "
            "nothing, or use another model."
        )
    return entry


def _kind(config: dict[str, Any], entry: dict[str, Any]) -> str:
    """The entry's kind under its present name."""
    kind = entry.get("rope_type") or entry.get("type") or "default"
    if entry.get("type", kind) != kind:
        raise UserError(
            f"config.json: rope_type is {kind!r} and type {entry['type']!r}, of which loaders take one or the other; "
            "keep the one that the model has."
        )
    if kind not in KINDS:
        raise UserError(f"config.json: rope_type {kind!r} is not supported; known: {', '.join(KINDS)}.")
    early_phi = config.get("model_type") == "phi3" and kind == "yarn"  # what Phi3Config calls longrope today
    return "longrope" if kind == "su" or early_phi else str(kind)


def _number(values: dict[str, Any], name: str, default: float | None) -> Any:
    """`values[name]` as a float, or `default` where it is missing or null."""
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"config.json: {name} is {value!r}; give a number.")
    least = _LEAST.get(name)
    if least is not None and value < least:
        raise UserError(f"config.json: {name} is {value!r}; give {least} or more.")
    return float(value)


def _llama3(entry: dict[str, Any], factor: float, original: int) -> dict[str, Any]:
    """What a llama3 entry says; transformers has no defaults for it."""
    missing = [name for name in ("factor", "low_freq_factor", "high_freq_factor") if entry.get(name) is None]
    if missing:
        raise UserError(f"config.json: the llama3 rope entry has no {' and no '.join(missing)}; add what is missing.")
    low, high = (_number(entry, name, None) for name in ("low_freq_factor", "high_freq_factor"))
    return {"kind": "llama3", "alpha": low, "beta": high}


def _yarn(entry: dict[str, Any], factor: float, original: int) -> dict[str, Any]:
    """What a yarn entry says: the coded form. mscale and mscale_all_dim count only together, as in transformers."""
    attention = _number(entry, "attention_factor", None)
    scales = [_number(entry, name, None) for name in ("mscale", "mscale_all_dim")]
    if attention is None:
        attention = temperature(factor)
        if all(scales):
            attention = temperature(factor, scales[0]) / temperature(factor, scales[1])
    served = temperature(factor) * _number(entry, "attn_factor", attention / temperature(factor))
    if not math.isclose(served, attention, rel_tol=1e-6):
        raise UserError(
            f"config.json: attn_factor makes the attention factor {served:.6g} in vLLM and SGLang, but transformers "
            f"takes {attention:.6g}; state attention_factor too, or remove attn_factor."
        )
    return {
        "kind": "yarn",
        "form": "coded",
        "alpha": _number(entry, "beta_slow", None) or 1.0,
        "beta": _number(entry, "beta_fast", None) or 32.0,
        "truncate": bool(entry.get("truncate", True)),
        "attention_factor": attention,
    }


def _longrope(entry: dict[str, Any], factor: float, original: int) -> dict[str, Any]:
    """What a longrope entry says."""
    lists = {}
    for name in ("short_factor", "long_factor"):
        value = entry.get(name)
        if not isinstance(value, list) or not value:
            raise UserError(f"config.json: the longrope entry has no list {name}; add it.")
        lists[name] = tuple(_number({name: number}, name, None) for number in value)
    attention = _number(entry, "attention_factor", None)
    return {
        "kind": "longrope",
        "short_factors": lists["short_factor"],
        "long_factors": lists["long_factor"],
        "attention_factor": longrope_attention(factor, original) if attention is None else attention,
    }


def states_attention_factor(rope: RopeScaling) -> bool:
    """Whether config.json has a place for this rope's attention factor."""
    return rope.kind == "longrope" or (rope.kind == "yarn" and rope.form == "coded")


def write(rope: RopeScaling) -> dict[str, Any]:
    """The config.json entries that serve `rope`: rope_theta, rope_scaling, max_position_embeddings and kin.

    max_position_embeddings is factor x original, unless the published model declared another, so that stacks that
    read the ratio agree with those that read the factor. Only dynamic-ntk counts from max_position_embeddings itself.

    Raises:
        UserError: Hugging Face has no form for it. `convert.hf_config` folds an attention factor into weights.
    """
    if rope.attention_factor != 1.0 and not states_attention_factor(rope):
        name = f"kind {rope.kind!r}" if rope.kind != "yarn" else f"form {rope.form!r}"
        raise UserError(
            f"rope {name} with attention_factor {rope.attention_factor} has no Hugging Face form; "
            "fold it into the query weights, as tools/convert_megatron_to_hf.py does."
        )
    if rope.kind == "ntk":
        raise UserError("rope kind 'ntk' depends on the head size, so config.json states it as another rope_theta.")
    length = rope.original_length if rope.kind == "dynamic-ntk" else rope.length
    out: dict[str, Any] = {"rope_theta": rope.base, "max_position_embeddings": length, "rope_scaling": _scaling(rope)}
    if rope.rotary_fraction != 1.0:
        out["partial_rotary_factor"] = rope.rotary_fraction
    by_rotations = rope.kind == "llama3" or (rope.kind == "yarn" and rope.form == "paper")
    if rope.kind in ("linear", "longrope") or (by_rotations and rope.original_length != 8192):
        # where Phi's readers look for it, and llama.cpp's converter, which takes 8,192 if it finds nothing; and a
        # linear entry says only by it whether max_position_embeddings is the context before or after scaling
        out["original_max_position_embeddings"] = rope.original_length
    return out


def _scaling(rope: RopeScaling) -> dict[str, Any] | None:
    """The rope_scaling entry."""
    if rope.kind == "none":
        return None
    if rope.kind == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    if rope.kind == "dynamic-ntk":
        return {"rope_type": "dynamic", "factor": rope.factor}
    if rope.kind == "longrope":
        return _longrope_scaling(rope)
    out: dict[str, Any] = {"factor": rope.factor, "original_max_position_embeddings": rope.original_length}
    if rope.kind == "llama3" or rope.form == "paper":
        return out | {"rope_type": "llama3", "low_freq_factor": rope.alpha, "high_freq_factor": rope.beta}
    out |= {
        "rope_type": "yarn",
        "beta_slow": rope.alpha,
        "beta_fast": rope.beta,
        "truncate": rope.truncate,
        "attention_factor": rope.attention_factor,
    }
    if rope.attention_factor != temperature(rope.factor):  # SGLang and earlier vLLM multiply 0.1 ln s + 1 by this
        out["attn_factor"] = rope.attention_factor / temperature(rope.factor)
    return out


def _longrope_scaling(rope: RopeScaling) -> dict[str, Any]:
    """The three keys that transformers 4's Phi3Config insists on, and more only where they would say too little."""
    out: dict[str, Any] = {
        "type": "longrope",
        "short_factor": list(rope.short_factors),
        "long_factor": list(rope.long_factors),
    }
    ratio = rope.length / rope.original_length
    if rope.factor != ratio:
        out["factor"] = rope.factor
    if rope.attention_factor != longrope_attention(rope.factor, rope.original_length):
        out["attention_factor"] = rope.attention_factor
    return out
