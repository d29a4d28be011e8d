"""RoPE scaling, exactly: one frozen value that training, conversion and inspection share.

Pure arithmetic on the host in float64: no torch.distributed, no device. Two formulas go by the name YaRN and
differ (arXiv 2309.00071, section 3.2, against what transformers, vLLM and megatron-core compute):

* form "paper": the ramp is linear in the number of rotations r = L / wavelength, between alpha and beta.
  Without a temperature this is exactly Llama-3.1's `llama3` rule with low = alpha and high = beta.
* form "coded": the ramp is linear in the dimension index, between the (rounded) indices at which the
  wavelength fits beta and alpha times into L.

Both are first-class here, and an export states the one that was trained.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_ultralong.config import RopeConfig
from megatron_ultralong.errors import UserError

Kind = Literal["none", "linear", "ntk", "llama3", "yarn"]
Form = Literal["paper", "coded"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are derived from the base model's.

    Attributes:
        base: theta of plain RoPE: theta_i = base^(-2 i / d).
        kind: "none", "linear" (theta / s), "ntk" (base * s^(d / (d - 2))), "llama3" or "yarn".
        factor: s, the ratio of new to original length.
        original_length: L, the tokens of context before scaling.
        form: of "yarn": the ramp in rotations ("paper") or in the dimension index ("coded").
        alpha: rotations at or below which a dimension is fully scaled (beta_slow, low_freq_factor).
        beta: rotations at or above which a dimension is kept (beta_fast, high_freq_factor).
        truncate: of the coded form: round the ramp's ends to whole dimension indices, as transformers does.
        attention_factor: m; cos and sin are each multiplied by it, so logits by m squared.
        declared_length: tokens a published model states where they exceed s x L, as Llama-3.1's 131,072 exceed
            8 x 8,192; it changes no frequency.
    """

    base: float
    kind: Kind = "none"
    factor: float = 1.0
    original_length: int
    form: Form = "paper"
    alpha: float = 1.0
    beta: float = 4.0
    truncate: bool = True
    attention_factor: float = 1.0
    declared_length: int = 0

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise UserError(f"rope factor {self.factor} is below 1; give new length / original length.")
        if self.original_length < 1:
            raise UserError(f"rope original_length {self.original_length} is not positive; give tokens.")
        if self.kind in ("llama3", "yarn") and not self.alpha < self.beta:
            raise UserError(f"rope alpha {self.alpha} is not below beta {self.beta}; swap or mend them.")

    @property
    def length(self) -> int:
        """Tokens of context after scaling: factor x original_length, or the more that the model declares."""
        return max(round(self.factor * self.original_length), self.declared_length)

    def inverse_frequencies(self, rotary_dim: int) -> NDArray[np.float64]:
        """theta'_i for i in [0, rotary_dim / 2), float64 [rotary_dim / 2], radians a token."""
        exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
        if self.kind == "ntk":
            return (self.base * self.factor ** (rotary_dim / (rotary_dim - 2))) ** -exponents
        plain = self.base**-exponents
        if self.kind == "none":
            return plain
        if self.kind == "linear":
            return plain / self.factor
        kept = self.kept_share(rotary_dim)
        return kept * plain + (1 - kept) * plain / self.factor

    def kept_share(self, rotary_dim: int) -> NDArray[np.float64]:
        """How much of each plain frequency yarn and llama3 keep: 1 kept, 0 divided by s; [rotary_dim / 2]."""
        exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
        if self.kind == "llama3" or self.form == "paper":
            rotations = self.original_length * self.base**-exponents / (2 * math.pi)
            return np.clip((rotations - self.alpha) / (self.beta - self.alpha), 0, 1)
        low, high = self._dimension_of(rotary_dim, self.beta), self._dimension_of(rotary_dim, self.alpha)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        high += 0.001 if low == high else 0  # as transformers, vLLM and megatron-core avoid a division by 0
        return 1 - np.clip((np.arange(rotary_dim // 2) - low) / (high - low), 0, 1)

    def _dimension_of(self, rotary_dim: int, rotations: float) -> float:
        """The (fractional) index whose wavelength fits `rotations` times into the original length."""
        periods = self.original_length / (2 * math.pi * rotations)
        return rotary_dim * math.log(periods) / (2 * math.log(self.base))

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> RopeScaling:
        """Read the rope of a Hugging Face config.json, in transformers 4's or 5's spelling.

        Raises:
            UserError: a kind, or a per-layer dictionary, that this project does not compute, or a part missing.
        """
        entry = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if any(isinstance(value, dict) for value in entry.values()):
            raise UserError("config.json: rope_parameters differ by layer type, which is not supported.")
        base = float(entry.get("rope_theta") or config.get("rope_theta") or 10000.0)
        kind = entry.get("rope_type") or entry.get("type") or "default"
        maximum = config.get("max_position_embeddings", 2048)
        factor = float(entry.get("factor") or 1.0)
        original = entry.get("original_max_position_embeddings") or maximum
        if kind == "default":
            rope = cls(base=base, original_length=maximum)
        elif kind == "linear":
            original = entry.get("original_max_position_embeddings") or max(1, round(maximum / factor))
            rope = cls(base=base, kind="linear", factor=factor, original_length=original)
        elif kind == "llama3":
            ramp = _llama3_ramp(entry)
            rope = cls(base=base, kind="llama3", factor=factor, original_length=original, **ramp)
        elif kind == "yarn":
            ramp = {"form": "coded", **_yarn_ramp(entry, factor)}
            rope = cls(base=base, kind="yarn", factor=factor, original_length=original, **ramp)
        else:
            raise UserError(f"config.json: rope_type {kind!r} is not supported; known: default, linear, llama3, yarn.")
        declared = config.get("max_position_embeddings", 0)
        return dataclasses.replace(rope, declared_length=declared) if declared > rope.length else rope

    def to_hf(self) -> dict[str, Any]:
        """The config.json entries that serve this rope: rope_theta, rope_scaling, max_position_embeddings.

        max_position_embeddings is factor x original, unless the model declared more, so that stacks that
        read the ratio agree with those that read the factor.

        Raises:
            UserError: Hugging Face has no form for it (the paper's ramp with a temperature).
        """
        out: dict[str, Any] = {"rope_theta": self.base, "max_position_embeddings": self.length}
        if self.kind == "none":
            return out | {"rope_scaling": None}
        scaling: dict[str, Any] = {"factor": self.factor, "original_max_position_embeddings": self.original_length}
        if self.kind == "linear":
            return out | {"rope_scaling": {"rope_type": "linear", "factor": self.factor}}
        if self.kind == "ntk":
            raise UserError("rope kind 'ntk' depends on the head size, so config.json states it as another rope_theta.")
        if self.kind == "llama3" or self.form == "paper":
            if self.attention_factor != 1.0:
                raise UserError(
                    f"rope form 'paper' with attention_factor {self.attention_factor} has no Hugging Face form; "
                    "train with attention_factor 1, or with form 'coded'."
                )
            scaling |= {"rope_type": "llama3", "low_freq_factor": self.alpha, "high_freq_factor": self.beta}
        else:
            scaling |= {
                "rope_type": "yarn",
                "beta_slow": self.alpha,
                "beta_fast": self.beta,
                "truncate": self.truncate,
                "attention_factor": self.attention_factor,
            }
        return out | {"rope_scaling": scaling}


def _llama3_ramp(entry: dict[str, Any]) -> dict[str, Any]:
    """alpha and beta of a llama3 entry, which has no defaults for them."""
    missing = [name for name in ("factor", "low_freq_factor", "high_freq_factor") if name not in entry]
    if missing:
        raise UserError(f"config.json: the llama3 rope entry has no {' and no '.join(missing)}; add what is missing.")
    return {"alpha": float(entry["low_freq_factor"]), "beta": float(entry["high_freq_factor"])}


def _yarn_ramp(entry: dict[str, Any], factor: float) -> dict[str, Any]:
    """alpha, beta, truncate and attention_factor of a yarn entry, with transformers' defaults."""
    attention = entry.get("attention_factor")
    if attention is None and entry.get("mscale") and entry.get("mscale_all_dim"):
        raise UserError("config.json: rope mscale and mscale_all_dim are not supported; state attention_factor.")
    return {
        "alpha": float(entry.get("beta_slow") or 1),
        "beta": float(entry.get("beta_fast") or 32),
        "truncate": bool(entry.get("truncate", True)),
        "attention_factor": float(attention) if attention is not None else temperature(factor),
    }


def temperature(factor: float) -> float:
    """YaRN's attention factor m = 0.1 ln s + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaled(own: RopeScaling, section: RopeConfig, sequence_length: int) -> RopeScaling:
    """The rope that a run trains with.

    Args:
        own: the starting model's rope; "keep" keeps it, any other kind replaces it, with the factor counted
            from the model's original length: 1,048,576 over Llama-3.1's 8,192 gives s = 128.
        section: the run's [rope].
        sequence_length: tokens a sample, the target unless `section.target_length` says another.

    Raises:
        UserError: the samples are longer than the resulting context, or the target shorter than the original.
    """
    if section.kind == "keep":
        rope = own
    else:
        original = section.original_length or own.original_length
        target = section.target_length or sequence_length
        if target < original:
            raise UserError(f"rope.target_length {target} is below the original length {original}; give a longer one.")
        factor = target / original
        rope = RopeScaling(
            base=own.base,
            kind=section.kind,
            factor=factor,
            original_length=original,
            form=section.form,
            alpha=section.alpha,
            beta=section.beta,
            attention_factor=temperature(factor) if section.temperature else 1.0,
        )
    if sequence_length > rope.length:
        raise UserError(
            f"data.sequence_length {sequence_length} is longer than the model's context of {rope.length} tokens; "
            'scale it with [rope] kind = "yarn".'
        )
    return rope
