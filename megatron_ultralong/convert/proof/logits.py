"""Do transformers and megatron-core compute the same? The logits of both, in fp32, over one whole sequence.

Checksums show that no weight was lost; only this shows that each one is used as it was trained, rope included, and
names the tensor where it is not (trace.py). Both models compute in fp32 whatever the weights are stored in, so what
is left is rounding. One model is in memory at a time: 4 bytes a parameter, plus S x D hidden states; logits exist for
`_CHUNK` positions at a time.
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
_SUSPICIOUS = 1e-2  # of the largest logit; fp32 rounding is below 1e-4 of it at moderate lengths


@dataclasses.dataclass(frozen=True)
class Verification:
    """What is compared.

    Attributes:
        hf: the model in Hugging Face format.
        load: the Megatron checkpoint.
        text: a UTF-8 file to take tokens from; None: random ids.
        length: tokens at most.
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
        max_abs_diff: largest difference of a logit.
        max_abs: largest logit of transformers' model.
        parted: where they part first, in words; None: nowhere by more than rounding.
    """

    tokens: int
    max_abs_diff: float
    max_abs: float
    parted: str | None = None

    @property
    def rounding(self) -> bool:
        """Whether the logits differ by rounding only."""
        return self.max_abs_diff <= _SUSPICIOUS * self.max_abs  # false of NaN


def verify_logits(what: Verification) -> dict[str, Any]:
    """Compare logits and say what came out; returns the entries for verification.json.

    Raises:
        UserError: they differ by more than rounding; or what `compare_logits` and `verification_tokens` raise.
    """
    found = compare_logits(what, verification_tokens(what.hf, what.length, what.text))
    if not found.rounding:
        raise UserError(
            f"logits of transformers and Megatron differ by {found.max_abs_diff:.3g} of {found.max_abs:.3g}, which is "
            f"not rounding; they part at {found.parted or 'the output layer'}; mend that, or give --verify checksums."
        )
    if found.parted:
        logger.warning("transformers and Megatron differ a little more than rounding at %s", found.parted)
    logger.info(
        "logits of transformers and Megatron over %d tokens: max abs diff %.3g (largest logit %.3g)",
        found.tokens,
        found.max_abs_diff,
        found.max_abs,
    )
    return {
        "hf_logits_max_abs_diff": found.max_abs_diff,
        "hf_logits_max_abs": found.max_abs,
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
    from megatron_ultralong.convert.proof.trace import Trace, part, spread
    from megatron_ultralong.engine import groups

    description = Description.read(what.load)
    table = Table.from_hf(description.hf_config)
    fold = QueryFold.of(description, table) if what.folded else QueryFold(1.0, 0, False)
    theirs, ours = Trace(spread(len(tokens_S))), Trace(spread(len(tokens_S)))
    with groups.single_process(ParallelConfig(device="cpu")) as device, torch.inference_mode():
        tokens_1S = tokens_S[None].to(device)
        theirs_SD, their_head_VD = _transformers(what, tokens_1S, table, theirs)
        ours_SD, our_head_VD = _megatron(what, tokens_1S, table, ours)
        difference = largest = 0.0
        for start in range(0, len(tokens_S), _CHUNK):
            their_logits = theirs_SD[start : start + _CHUNK] @ their_head_VD.t()
            our_logits = ours_SD[start : start + _CHUNK] @ our_head_VD.t()
            # torch.maximum keeps NaN, which Python's max may drop.
            difference = float(torch.maximum(torch.tensor(difference), (their_logits - our_logits).abs().max()))
            largest = max(largest, float(their_logits.abs().max()))
        return LogitsComparison(len(tokens_S), difference, largest, part(table, fold, theirs, ours))


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


def _round(model: torch.nn.Module, dtype: torch.dtype | None) -> None:
    """Round every weight to `dtype`, keeping fp32."""
    for parameter in model.parameters() if dtype is not None else ():
        parameter.copy_(parameter.to(dtype))


def _transformers(
    what: Verification, tokens_1S: torch.Tensor, table: Table, trace: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Final hidden states [S, D] and output weights [V, D] of transformers' model."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from megatron_ultralong.convert.proof.trace import follow_transformers

    transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            what.hf,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{what.hf}: transformers cannot load it ({reason}); convert or copy it again.") from None
    model = model.to(tokens_1S.device).eval()
    _round(model, what.dtype)
    follow_transformers(model, table, trace, tokens_1S.shape[1])
    hidden = model.base_model(input_ids=tokens_1S, use_cache=False).last_hidden_state[0]
    return hidden, model.get_output_embeddings().weight.detach()


def _megatron(
    what: Verification, tokens_1S: torch.Tensor, table: Table, trace: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Final hidden states [S, D] and output weights [V, D] of megatron-core's model."""
    from megatron_ultralong.checkpoint.loading import load_weights
    from megatron_ultralong.config.sections import ParallelConfig
    from megatron_ultralong.context_parallel.core_attention import SequenceLayout
    from megatron_ultralong.convert.proof.trace import follow_megatron
    from megatron_ultralong.model.build import build_model

    description = Description.read(what.load)
    model = build_model(description.hf_config, description.rope, ParallelConfig(), "fp32").to(tokens_1S.device).eval()
    load_weights(model, what.load)
    _round(model, what.dtype)
    follow_megatron(model, table, trace, tokens_1S.shape[1])
    model.post_process = False  # GPTModel then returns the (normed) hidden states, not [S, V] logits
    positions_1S = torch.arange(tokens_1S.shape[1], device=tokens_1S.device)[None]
    hidden_S1D = model(
        input_ids=tokens_1S,
        position_ids=positions_1S,
        attention_mask=None,
        packed_seq_params=SequenceLayout(position_ids=positions_1S),
    )
    tied = model.share_embeddings_and_output_weights
    head = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    return hidden_S1D[:, 0], head.detach()
