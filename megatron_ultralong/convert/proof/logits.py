"""Do transformers and megatron-core compute the same? The logits of both, in fp32, over one whole sequence.

Checksums show that no weight was lost; only this shows that each one is used as it was trained, rope included, and
names the tensor where it is not (trace.py). What may differ is rounding, and how much that is here is measured:
transformers runs once more in fp64, and megatron-core's fp32 may be off from that by twice what transformers' own fp32
is, plus a millionth, at every module and in the logits. One model is in memory at a time: 4 bytes a parameter and one
layer in 8, plus S x D hidden states; logits exist for a block of positions and of the vocabulary at a time.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.folding import QueryFold
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

_CHUNK = 1024
_VOCABULARY = 16384


@dataclasses.dataclass(frozen=True)
class Verification:
    """What is compared.

    Attributes:
        hf: the model in Hugging Face format.
        load: the Megatron checkpoint.
        text: a UTF-8 file to take tokens from; None: random ids.
        length: tokens at most; 0: the model's whole context, beyond which it never goes.
        folded: the Hugging Face side is an export, which may hold a temperature in its queries (folding.py).
        dtype: both models' weights are rounded to it first, where one side stores a narrower one.
    """

    hf: Path
    load: Path
    text: Path | None = None
    length: int = 2048
    folded: bool = False
    dtype: torch.dtype | None = None


@dataclasses.dataclass(frozen=True)
class LogitsComparison:
    """Two models' logits over the same tokens.

    Attributes:
        tokens: positions compared.
        max_abs_diff: largest difference of a logit between the two.
        max_abs: largest logit of transformers' model.
        error: largest difference of megatron-core's fp32 from transformers' fp64.
        rounding: largest difference of transformers' fp32 from its fp64.
        parted: where they part first, in words; None: nowhere by more than rounding.
    """

    tokens: int
    max_abs_diff: float
    max_abs: float
    error: float
    rounding: float
    parted: str | None = None

    @property
    def same(self) -> bool:
        """Whether they differ by rounding only, everywhere."""
        from megatron_ultralong.convert.proof.trace import allowed

        return self.parted is None and self.error <= allowed(self.rounding, self.max_abs)  # false of NaN


def verify_logits(what: Verification) -> dict[str, Any]:
    """Compare logits and say what came out; returns the entries for verification.json.

    Raises:
        UserError: they differ by more than rounding; or what `compare_logits` and `verification_tokens` raise.
    """
    context = Description.read(what.load).rope.length
    found = compare_logits(what, verification_tokens(what.hf, min(what.length or context, context), what.text))
    if not found.same:
        raise UserError(
            f"logits of transformers and Megatron differ by {found.max_abs_diff:.3g} of {found.max_abs:.3g}, which is "
            f"not rounding; they part at {found.parted or 'the output layer'}; mend that, or give --verify checksums."
        )
    logger.info(
        "logits of transformers and Megatron over %d tokens: max abs diff %.3g (largest logit %.3g)",
        found.tokens,
        found.max_abs_diff,
        found.max_abs,
    )
    return {
        "hf_logits_max_abs_diff": found.max_abs_diff,
        "hf_logits_max_abs": found.max_abs,
        "hf_logits_rounding": found.rounding,
        "tokens": found.tokens,
        "text": None if what.text is None else str(what.text),
    }


def compare_logits(what: Verification, tokens_S: torch.Tensor) -> LogitsComparison:
    """Run both models over the same tokens.

    Args:
        what: the two models.
        tokens_S: int64 [S], ids below the vocabulary size.

    Raises:
        UserError: transformers can't load `hf`, or megatron-core `load`.
    """
    from megatron_ultralong.config.sections import ParallelConfig
    from megatron_ultralong.convert.proof import both_models
    from megatron_ultralong.convert.proof.trace import Traces, part, spread
    from megatron_ultralong.engine import groups

    description = Description.read(what.load)
    table = Table.from_hf(description.hf_config)
    fold = QueryFold.of(description, table) if what.folded else QueryFold(1.0, 0, False)
    traces = Traces.at(spread(len(tokens_S)))
    with groups.single_process(ParallelConfig(device="cpu")) as device, torch.inference_mode():
        tokens_1S = tokens_S[None].to(device)
        theirs = both_models.transformers(what.hf, what.dtype, tokens_1S, table, traces)
        rounding_of_weights = both_models.Rounding(what.hf, what.dtype, fold)
        ours = both_models.megatron(what.load, rounding_of_weights, tokens_1S, table, traces)
        largest, difference, error, rounding = _differences(theirs, ours).tolist()
        parted = part(table, fold, traces)
    return LogitsComparison(len(tokens_S), difference, largest, error, rounding, parted)


def _differences(theirs: Any, ours: Any) -> torch.Tensor:
    """Largest logit, and differences: both models, megatron-core and fp64, transformers and fp64; NaN stays, [4]."""
    found = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(theirs.hidden), _CHUNK):
        rows = slice(start, start + _CHUNK)
        for first in range(0, len(theirs.head), _VOCABULARY):
            words = slice(first, first + _VOCABULARY)
            head = theirs.head[words]
            one = theirs.hidden[rows] @ head.t()
            other = ours.hidden[rows] @ ours.head[words].t()
            exact = theirs.exact[rows] @ head.double().t()
            block = (one, one - other, other - exact, one - exact)
            found = torch.maximum(found, torch.stack([value.abs().max().double() for value in block]))
    return found


def verification_tokens(folder: Path, length: int, text: Path | None = None) -> torch.Tensor:
    """The ids to compare on: those of a text, or random ones.

    Args:
        folder: the model in Hugging Face format, whose tokenizer and vocabulary are used.
        length: how many at most.
        text: a UTF-8 file; None: random ids, the same each time.

    Returns:
        int64 [S], S <= length.

    Raises:
        UserError: the text can't be read, or gives no ids.
    """
    if text is None:
        from megatron_ultralong.files import read_json

        config = read_json(Path(folder) / "config.json", "the model's configuration", "give another folder")
        return torch.randint(config["vocab_size"], (length,), generator=torch.Generator().manual_seed(0))
    from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer

    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: cannot be read as UTF-8 text ({error}); give another --verify-text.") from None
    ids = torch.tensor(load_tokenizer(folder).encode(content), dtype=torch.int64)[:length]
    if not len(ids):
        raise UserError(f"{text}: gives no tokens; give another --verify-text.")
    return ids
