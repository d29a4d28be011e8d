"""Perplexity by position: how well tokens are predicted the deeper they lie in a long document.

Held-out documents are cut into non-overlapping windows of the full target length (no sliding window, so the
first tokens of a window have no context and the last have all of it), and each predicted token counts for the
bucket of its position. No token is put before a window: training packs put none there either. A window costs
one forward pass; the head runs over chunks of it.

Legend: S window, D hidden, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf import LanguageModel
from megatron_ultralong.progress import track

CHUNK = 1024
"""Positions whose logits exist at the same time."""


def bucket_edges(length: int, buckets: int = 6) -> list[int]:
    """0, then halvings of `length` upwards: for 2048 and 4 buckets 0, 256, 512, 1024, 2048."""
    return [0, *sorted({length >> shift for shift in range(buckets) if length >> shift > 1})]


def cut_windows(documents: Iterable[str], tokenizer: ChatTokenizer, length: int, limit: int) -> torch.Tensor:
    """Tokenize documents and cut them into whole windows; what is left of a document is dropped.

    Held are 4 bytes a token of all whole windows, and one document as the tokenizer gives it.

    Args:
        documents: held-out texts.
        tokenizer: encodes them.
        length: tokens of a window.
        limit: windows kept at most, evenly spread over all there are.

    Returns:
        int32 [windows, length].

    Raises:
        UserError: no document has `length` tokens.
    """
    windows: list[npt.NDArray[np.int32]] = []
    longest = 0
    for document in track(documents, "tokenizing held-out documents", "documents"):
        ids = np.array(tokenizer.encode(document), dtype=np.int32)
        longest = max(longest, len(ids))
        if whole := len(ids) // length:
            windows.extend(ids[: whole * length].copy().reshape(whole, length))
    if not windows:
        raise UserError(
            f"perplexity needs documents of at least {length} tokens and the longest has {longest}; "
            "give longer documents or a shorter target length."
        )
    kept = min(limit, len(windows))
    return torch.from_numpy(np.stack([windows[index * len(windows) // kept] for index in range(kept)]))


@torch.inference_mode()
def window_losses(model: LanguageModel, window_S: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token of a window but the first.

    Args:
        model: the model judged.
        window_S: int32 or int64 [S].

    Returns:
        fp32 [S - 1] on the CPU, in nats.
    """
    window_S = window_S.to(model.device, torch.int64)
    hidden_SD = model.hidden(window_S[None])[0, :-1]
    labels_S = window_S[1:]
    chunks = zip(hidden_SD.split(CHUNK), labels_S.split(CHUNK), strict=True)
    return torch.cat(
        [F.cross_entropy(model.logits(hidden), labels, reduction="none") for hidden, labels in chunks]
    ).cpu()


def perplexity_rows(
    model: LanguageModel, windows: torch.Tensor, edges: Sequence[int], description: str
) -> list[dict[str, Any]]:
    """Perplexity of the tokens in each bucket of positions.

    Args:
        model: the model judged.
        windows: int32 [windows, S].
        edges: ascending; a token at position p of its window falls in the bucket with from <= p < to.
        description: what the progress line says.

    Returns:
        Rows {from, to, perplexity, tokens}; a window's first token, which nothing predicts, is not counted.
    """
    loss = torch.zeros(windows.shape[1] - 1, dtype=torch.float64)
    for window_S in track(windows, description, "windows"):
        loss += window_losses(model, window_S)
    rows = []
    for low, high in itertools.pairwise(edges):
        part = loss[max(low, 1) - 1 : high - 1]
        tokens = len(part) * len(windows)
        if tokens:
            mean = float(part.sum()) / tokens
            rows.append({"from": low, "to": high, "perplexity": math.exp(min(mean, 700.0)), "tokens": tokens})
    return rows
