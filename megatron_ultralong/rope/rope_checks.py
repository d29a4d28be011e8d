"""Which fields of [rope] go together: checked before anything is built.

Whether the target can be reached from the model's own rope is `recipes.scaled`'s to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from megatron_ultralong.config.sections import RopeConfig, RunConfig

_SCALING = ("target_length", "original_length", "temperature")
_READ = {
    "keep": (),
    "ultralong": ("target_length",),
    "linear": _SCALING,
    "ntk": _SCALING,
    "llama3": (*_SCALING, "alpha", "beta"),
    "yarn": (*_SCALING, "alpha", "beta", "form"),
}
"""The fields that each kind reads, beside kind and angles."""
_WHY = {
    "keep": 'leaves the model\'s rope as it is; remove it, or set rope.kind to "ultralong"',
    "ultralong": 'follows the model\'s own; remove it, or set rope.kind to "yarn"',
}


def rope_problems(config: RunConfig) -> Iterator[str]:
    """Fields that the kind does not read, or a scaling that does not reach the data's length."""
    rope, length = config.rope, config.data.sequence_length
    for field in dataclasses.fields(RopeConfig):
        given = getattr(rope, field.name)
        if field.name not in ("kind", "angles", *_READ[rope.kind]) and given != field.default:
            why = _WHY.get(rope.kind, "does not read it; remove it")
            yield f'rope.{field.name} is {given}, but rope.kind "{rope.kind}" {why}.'
    if rope.kind != "keep" and 0 < rope.target_length < length:
        yield (
            f"rope.target_length is {rope.target_length}, below data.sequence_length {length}; "
            "raise it, or set it to 0 for data.sequence_length."
        )
