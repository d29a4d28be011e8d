"""Perplexity of runs by position and by length, with intervals over windows.

Windows are drawn again as wholes, since the tokens of one are not independent: exp(sum of nats / sum of tokens) of each
resample.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.evaluation.report.bootstrap import HIGH, LOW, RESAMPLES
from megatron_ultralong.evaluation.report.gathering import Model
from megatron_ultralong.evaluation.run_folder import Window

_MOST_NATS = 700.0


def perplexities(models: Sequence[Model]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Task -> model -> rows {length, from, to, perplexity, low, high, tokens, windows}.

    Rows ascend by length, then by position.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for model in models:
        windows: dict[tuple[str, int], list[Window]] = {}
        for run in model.runs:
            for window in run.windows():
                windows.setdefault((window.task, window.length), []).append(window)
        for (task, length), theirs in sorted(windows.items()):
            found.setdefault(task, {}).setdefault(model.name, []).extend(_rows(task, length, theirs))
    return found


def _rows(task: str, length: int, windows: Sequence[Window]) -> list[dict[str, Any]]:
    sums: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for window in windows:
        for start, end, nats, tokens in window.buckets:
            sums.setdefault((start, end), []).append((nats, tokens))
    rows = []
    for (start, end), parts in sorted(sums.items()):
        nats_W, tokens_W = np.array(parts, dtype=np.float64).T
        low, high = np.percentile(_drawn(nats_W, tokens_W, f"{task} {length} {start}"), (LOW, HIGH))
        rows.append({
            "length": length, "from": start, "to": end, "perplexity": _perplexity(nats_W.sum() / tokens_W.sum()),
            "low": _perplexity(low), "high": _perplexity(high), "tokens": int(tokens_W.sum()), "windows": len(parts),
        })  # fmt: skip
    return rows


def _drawn(nats_W: npt.NDArray[np.float64], tokens_W: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
    """Mean nats a token of each resample, fp64 [RESAMPLES]; W windows."""
    picks = np.random.default_rng(zlib.crc32(name.encode())).integers(0, len(nats_W), (RESAMPLES, len(nats_W)))
    return np.asarray(nats_W[picks].sum(axis=1) / tokens_W[picks].sum(axis=1))


def _perplexity(nats: float) -> float:
    return round(math.exp(min(float(nats), _MOST_NATS)), 4)
