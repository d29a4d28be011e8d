"""Which rope a run trains with: the paper's recipe by name, or a section of the configuration spelt out.

A recipe is a function of the model's own rope and the target length, so one line of a run's configuration,
`kind = "ultralong"`, gives the right factor for any base model whose own scaling is known.
"""

from __future__ import annotations

import dataclasses
import math

from megatron_ultralong.config.sections import RopeConfig
from megatron_ultralong.errors import UserError
from megatron_ultralong.rope.scaling import RopeScaling, temperature

LLAMA31 = RopeScaling(base=5e5, kind="llama3", factor=8.0, original_length=8192, declared_length=131072)
"""Llama-3.1's own rope, from its config.json."""
LONGEST = 2**24
"""Positions that fp32 tells apart. Every serving stack makes angles of fp32 positions, so nothing longer serves."""


def ultralong(target_length: int, own: RopeScaling = LLAMA31) -> RopeScaling:
    """The paper's recipe (arXiv 2504.06214): YaRN in the paper's form, alpha 1, beta 4, s = target / original length.

    For Llama-3.1 that is s = target / 8,192, in place of its own 8. In general it follows the model's own scaling,
    so that every dimension it keeps is kept again:

    * none: the paper's form with alpha 1 and beta 4, relative to the context the model has;
    * llama3 and yarn in the paper's form: the same ramp relative to the same original length, with a larger s;
    * yarn in the coded form: the same, and 0.1 ln s + 1 anew where the model's attention factor is that of its own s.

    Args:
        target_length: tokens of context to reach.
        own: the base model's rope.

    Raises:
        UserError: the target isn't longer than the model's own, is beyond what serving stacks' fp32 positions
            tell apart, or `own` is scaled in a way that the recipe has no rule for.
    """
    if own.kind not in ("none", "llama3", "yarn"):
        raise UserError(
            f'rope.kind "ultralong" has no rule for a model whose own rope is {own.kind!r}; state kind, factor and '
            "original_length in [rope]."
        )
    original = own.length if own.kind == "none" else own.original_length
    factor = _factor(target_length, original)
    if factor < own.factor:
        raise UserError(
            f"rope.target_length {target_length} is {factor:g} times the original length {original}, less than the "
            f'model\'s own factor {own.factor:g}; give a longer one, or set rope.kind to "keep".'
        )
    rope = dataclasses.replace(own, factor=factor, original_length=original, declared_length=0)
    if own.kind != "yarn":
        ramp = (own.alpha, own.beta) if own.kind == "llama3" else (1.0, 4.0)
        return dataclasses.replace(rope, kind="yarn", form="paper", alpha=ramp[0], beta=ramp[1])
    if math.isclose(own.attention_factor, temperature(own.factor), rel_tol=1e-6):
        rope = dataclasses.replace(rope, attention_factor=temperature(factor))
    return rope


def scaled(own: RopeScaling, section: RopeConfig, sequence_length: int) -> RopeScaling:
    """The rope that a run trains with.

    Args:
        own: the starting model's rope; "keep" keeps it, "ultralong" is the recipe above, any other kind replaces
            it, with the factor counted from the model's original length: 1,048,576 over Llama-3.1's 8,192 gives 128.
        section: the run's [rope].
        sequence_length: tokens a sample, the target unless `section.target_length` says another.

    Raises:
        UserError: the samples are longer than the resulting context, or the target cannot be reached.
    """
    target = section.target_length or sequence_length
    if section.kind == "keep":
        rope = own
    elif section.kind == "ultralong":
        rope = ultralong(target, own)
    else:
        original = section.original_length or own.original_length
        factor = _factor(target, original)
        rope = RopeScaling(
            base=own.base,
            kind=section.kind,
            factor=factor,
            original_length=original,
            form=section.form,
            alpha=section.alpha,
            beta=section.beta,
            attention_factor=temperature(factor) if section.temperature else 1.0,
            rotary_fraction=own.rotary_fraction,
        )
    if sequence_length > rope.length:
        raise UserError(
            f"data.sequence_length {sequence_length} is longer than the model's context of {rope.length} tokens; "
            'scale it with [rope] kind = "ultralong".'
        )
    return rope


def _factor(target: int, original: int) -> float:
    """target / original, where that can be reached."""
    if target < original:
        raise UserError(
            f"rope.target_length {target} is below the original length {original}; give a longer one "
            "(data.sequence_length, where it isn't set)."
        )
    if target > LONGEST:
        raise UserError(
            f"rope.target_length {target} is beyond {LONGEST}, the last position that serving stacks' fp32 tells from "
            "its neighbours; give a shorter one."
        )
    return target / original
