"""RoPE scaling, exactly: one frozen value that training, conversion and inspection share.

Pure arithmetic on the host in float64: no torch, no process group. Two formulas go by the name YaRN and differ
(arXiv 2309.00071, section 3.2, against what transformers, vLLM and megatron-core compute):

* form "paper": the ramp is linear in the number of rotations r = L / wavelength, between alpha and beta.
  Without a temperature this is exactly Llama-3.1's `llama3` rule with low = alpha and high = beta.
* form "coded": the ramp is linear in the dimension index, between the (rounded) indices at which the
  wavelength fits beta and alpha times into L.

Both are first-class here, and an export states the one that was trained. How config.json spells each is
`rope/config_json.py`'s business, how a run chooses one `rope/recipes.py`'s; docs/rope.md says when to use which.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from megatron_ultralong.errors import UserError

Kind = Literal["none", "linear", "ntk", "dynamic-ntk", "llama3", "yarn", "longrope"]
Form = Literal["paper", "coded"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are derived from the base model's, with P = rotary_dim / 2 of them a head.

    Attributes:
        base: theta of plain RoPE: theta_i = base^(-2 i / d), with d = rotary_dim.
        kind: "none"; "linear": theta / s; "ntk": base * s^(d / (d - 2)); "dynamic-ntk": ntk with the factor that
            the sequence's length asks for; "llama3"; "yarn"; "longrope": theta_i divided by a list's factor_i.
        factor: s, the ratio of new to original length.
        original_length: L, the tokens of context before scaling.
        form: of "yarn": the ramp in rotations ("paper") or in the dimension index ("coded").
        alpha: rotations at or below which a dimension is fully scaled (beta_slow, low_freq_factor).
        beta: rotations at or above which a dimension is kept (beta_fast, high_freq_factor).
        truncate: of the coded form: round the ramp's ends to whole dimension indices, as transformers does.
        attention_factor: m; cos and sin are each multiplied by it, so what the rotated channels give to the
            logits by m squared.
        declared_length: tokens a published model states where they are not s x L: Llama-3.1's 131,072 are not
            8 x 8,192, nor Llama-3.2's 32 x 8,192; 0: s x L. It changes no frequency.
        rotary_fraction: the share of a head's channels that is rotated (partial_rotary_factor).
        short_factors: of "longrope": P divisors for sequences of at most L tokens.
        long_factors: of "longrope": P divisors for longer ones.
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
    rotary_fraction: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("short_factors", "long_factors"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for problem in self._problems():
            raise UserError(problem)

    def _problems(self) -> list[str]:
        """What cannot be, one sentence each."""
        ramped = self.kind in ("llama3", "yarn")
        lists = (self.short_factors, self.long_factors)
        rules = (
            (self.kind in get_args(Kind), f"rope kind {self.kind!r} is unknown; known: {', '.join(get_args(Kind))}."),
            (1 < self.base < math.inf, f"rope base {self.base} is not above 1; give the model's rope_theta."),
            (1 <= self.factor < math.inf, f"rope factor {self.factor} is below 1; give new length / original length."),
            (self.original_length >= 1, f"rope original_length {self.original_length} is not positive; give tokens."),
            (
                not ramped or 0 < self.alpha < self.beta,
                f"rope alpha {self.alpha} is not between 0 and beta {self.beta}; swap or mend them.",
            ),
            (
                0 < self.attention_factor < math.inf,
                f"rope attention_factor {self.attention_factor} is not above 0; 1 leaves the logits as they are.",
            ),
            (
                0 < self.rotary_fraction <= 1,
                f"rope partial_rotary_factor {self.rotary_fraction} is not above 0 and at most 1.",
            ),
            (
                self.kind != "longrope" or len(lists[0]) == len(lists[1]) > 0,
                f"rope short_factor has {len(lists[0])} numbers and long_factor {len(lists[1])}; give as many in both.",
            ),
            (
                all(0 < factor < math.inf for factors in lists for factor in factors),
                "rope short_factor or long_factor has a number that is not above 0; divisors are positive.",
            ),
        )
        return [said for holds, said in rules if not holds]

    @property
    def length(self) -> int:
        """Tokens of context after scaling: what the model declares, or else factor x original_length."""
        return self.declared_length or round(self.factor * self.original_length)

    @property
    def depends_on_length(self) -> bool:
        """Whether frequencies differ by the sequence's length: "dynamic-ntk" and "longrope"."""
        return self.kind in ("dynamic-ntk", "longrope")

    def rotary_dim(self, head_dim: int) -> int:
        """Channels of a head that are rotated: the first of them, as transformers counts.

        Raises:
            UserError: none, or an odd number.
        """
        dim = int(head_dim * self.rotary_fraction)
        if dim < 2 or dim % 2:
            raise UserError(
                f"config.json: partial_rotary_factor {self.rotary_fraction} of a head of {head_dim} rotates {dim} "
                "channels; rope needs an even number."
            )
        return dim

    def inverse_frequencies(self, rotary_dim: int, length: int = 0) -> NDArray[np.float64]:
        """theta'_i for i in [0, rotary_dim / 2), float64 [rotary_dim / 2], radians a token.

        Args:
            rotary_dim: channels that are rotated, d.
            length: tokens of the sequence, on which "dynamic-ntk" and "longrope" depend; 0: the whole context.

        Raises:
            UserError: the lists of "longrope" are not of rotary_dim / 2 factors.
        """
        exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
        if self.kind in ("ntk", "dynamic-ntk"):
            return self.ntk_base(rotary_dim, length) ** -exponents
        plain: NDArray[np.float64] = self.base**-exponents
        if self.kind == "none":
            return plain
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "longrope":
            return plain / np.asarray(self.list_for(rotary_dim, length))
        assert self.kind in ("llama3", "yarn"), self.kind
        kept = self.kept_share(rotary_dim)
        return kept * plain + (1 - kept) * plain / self.factor

    def ntk_base(self, rotary_dim: int, length: int = 0) -> float:
        """The base that "ntk" and "dynamic-ntk" put in the place of `base`: arguments as `inverse_frequencies`."""
        factor = self.factor
        if self.kind == "dynamic-ntk":  # transformers' rule: 1 up to L tokens, then linear in the length
            tokens = max(length or self.length, self.original_length)
            factor = self.factor * tokens / self.original_length - (self.factor - 1)
        return float(self.base * factor ** (rotary_dim / (rotary_dim - 2)))

    def list_for(self, rotary_dim: int, length: int = 0) -> tuple[float, ...]:
        """The divisors of "longrope" for a sequence: arguments and errors as `inverse_frequencies`."""
        factors = self.long_factors if (length or self.length) > self.original_length else self.short_factors
        if len(factors) != rotary_dim // 2:
            raise UserError(
                f"config.json: short_factor and long_factor have {len(factors)} numbers, but {rotary_dim} rotated "
                f"channels need {rotary_dim // 2}."
            )
        return factors

    def kept_share(self, rotary_dim: int) -> NDArray[np.float64]:
        """How much of each plain frequency yarn and llama3 keep: 1 kept, 0 divided by s; [rotary_dim / 2]."""
        if self.kind == "llama3" or self.form == "paper":
            exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
            rotations = self.original_length * self.base**-exponents / (2 * math.pi)
            return np.clip((rotations - self.alpha) / (self.beta - self.alpha), 0, 1)
        low, high = self.ramp_ends(rotary_dim)
        return 1 - np.clip((np.arange(rotary_dim // 2) - low) / (high - low), 0, 1)

    def ramp_ends(self, rotary_dim: int) -> tuple[float, float]:
        """Dimension indices between which the coded form blends: the last kept, the first fully scaled."""
        low, high = self._dimension_of(rotary_dim, self.beta), self._dimension_of(rotary_dim, self.alpha)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        return low, high + (0.001 if low == high else 0)  # as transformers, vLLM and megatron-core avoid 0 / 0

    def _dimension_of(self, rotary_dim: int, rotations: float) -> float:
        """The (fractional) index whose wavelength fits `rotations` times into the original length."""
        periods = self.original_length / (2 * math.pi * rotations)
        return rotary_dim * math.log(periods) / (2 * math.log(self.base))


def temperature(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention factor m = 0.1 ln s + 1 (arXiv 2309.00071, equation 22), the logarithm times `mscale`."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def longrope_attention(factor: float, original_length: int) -> float:
    """LongRoPE's attention factor sqrt(1 + ln s / ln L), as transformers and vLLM compute it."""
    return math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1 and original_length > 1 else 1.0
