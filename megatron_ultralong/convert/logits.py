"""Do transformers and megatron-core compute the same? The logits of both, in fp32, over one whole sequence.

Checksums show that no weight was lost; only this shows that each one is used as it was trained, rope included.
Both models compute in fp32 whatever the weights are stored in, so what is left is rounding. One model is in
memory at a time: 4 bytes a parameter, plus S x D hidden states; logits exist for `_CHUNK` positions at a time.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.errors import UserError
from megatron_ultralong.model.description import Description

logger = logging.getLogger(__name__)

_CHUNK = 1024
_SUSPICIOUS = 1e-2  # of the largest logit; fp32 rounding is below 1e-4 of it at moderate lengths


@dataclasses.dataclass(frozen=True)
class LogitsComparison:
    """Two models' logits over the same tokens.

    Attributes:
        tokens: positions compared.
        max_abs_diff: largest difference of a logit.
        max_abs: largest logit of transformers' model.
    """

    tokens: int
    max_abs_diff: float
    max_abs: float


def compare_logits(*, hf: Path, load: Path, tokens_S: torch.Tensor) -> LogitsComparison:
    """Run both models over the same tokens.

    Args:
        hf: the model in Hugging Face format.
        load: the Megatron checkpoint.
        tokens_S: int64 [S], ids below the vocabulary size.

    Raises:
        UserError: transformers can't load `hf`, or megatron-core `load`.
    """
    from megatron_ultralong.config import ParallelConfig
    from megatron_ultralong.engine import groups

    with groups.single_process(ParallelConfig(device="cpu")) as device, torch.inference_mode():
        tokens_1S = tokens_S[None].to(device)
        theirs_SD, their_head_VD = _transformers(hf, tokens_1S, device)
        ours_SD, our_head_VD = _megatron(load, tokens_1S, device)
        difference = largest = 0.0
        for start in range(0, len(tokens_S), _CHUNK):
            theirs = theirs_SD[start : start + _CHUNK] @ their_head_VD.t()
            ours = ours_SD[start : start + _CHUNK] @ our_head_VD.t()
            difference = max(difference, float((theirs - ours).abs().max()))
            largest = max(largest, float(theirs.abs().max()))
    if not difference <= _SUSPICIOUS * largest:  # also true of NaN
        logger.warning("logits of transformers and Megatron differ by %.3g of %.3g: not rounding", difference, largest)
    return LogitsComparison(tokens=len(tokens_S), max_abs_diff=difference, max_abs=largest)


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
        from megatron_ultralong.convert.huggingface import HfFolder

        vocabulary = HfFolder.open(folder).config["vocab_size"]
        return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(0))
    from megatron_ultralong.data.tokenizer import load_tokenizer

    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: cannot be read as UTF-8 text ({error}); give another --verify-text.") from None
    ids = torch.tensor(load_tokenizer(folder).encode(content), dtype=torch.int64)[:length]
    if not len(ids):
        raise UserError(f"{text}: gives no tokens; give another --verify-text.")
    return ids


def _transformers(hf: Path, tokens_1S: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Final hidden states [S, D] and output weights [V, D] of transformers' model."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            hf, local_files_only=True, dtype=torch.float32, attn_implementation="sdpa"
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{hf}: transformers cannot load it ({reason}); convert or copy it again.") from None
    model = model.to(device).eval()
    hidden = model.base_model(input_ids=tokens_1S, use_cache=False).last_hidden_state[0]
    return hidden, model.get_output_embeddings().weight.detach()


def _megatron(load: Path, tokens_1S: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Final hidden states [S, D] and output weights [V, D] of megatron-core's model."""
    from megatron_ultralong.config import ParallelConfig
    from megatron_ultralong.context_parallel.core_attention import SequenceLayout
    from megatron_ultralong.model.build import build_model
    from megatron_ultralong.training.checkpoint import load_weights

    description = Description.read(load)
    model = build_model(description.hf_config, description.rope, ParallelConfig(), "fp32").to(device).eval()
    load_weights(model, load)
    model.post_process = False  # GPTModel then returns the (normed) hidden states, not [S, V] logits
    positions_1S = torch.arange(tokens_1S.shape[1], device=device)[None]
    hidden_S1D = model(
        input_ids=tokens_1S,
        position_ids=positions_1S,
        attention_mask=None,
        packed_seq_params=SequenceLayout(position_ids=positions_1S),
    )
    tied = model.share_embeddings_and_output_weights
    head = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    return hidden_S1D[:, 0], head.detach()
