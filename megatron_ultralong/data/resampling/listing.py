"""The resampled list on disk: `document_ids.npy`, `manifest.json` (the report) and `histogram.png` (the picture).

The report says, source by source, what was there, what is listed, how many documents were dropped or repeated,
the lengths before and after in powers of two, and which budgets could not be met.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.corpus import Corpus
from megatron_ultralong.data.packing.index import Documents
from megatron_ultralong.data.resampling.policy import LengthPolicy, SourceResult, resample
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import (
    atomic_directory,
    disk_errors_named,
    fingerprint,
    read_json,
    refuse_others,
    write_json,
)

logger = logging.getLogger(__name__)

VERSION = 2
_IDS = "document_ids.npy"
Ints = npt.NDArray[np.int64]


def parse_weights(words: Sequence[str]) -> dict[str, float] | None:
    """Weights from `NAME=NUMBER` words; None without any.

    Raises:
        UserError: a word is not of this form, or names a source twice.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            name = ""
        if not name:
            raise UserError(f"weights: '{word}' is not NAME=NUMBER; write for instance web=0.7.")
        if name in weights:
            raise UserError(f"weights: source '{name}' has two; give one.")
        weights[name] = weight
    return weights or None


def write_resampled(corpus: Corpus, folder: Path, policy: LengthPolicy, total: int | None, seed: int) -> dict[str, Any]:
    """Resample a corpus (see `resample`), write the list with its report, and return the report.

    Raises:
        UserError: an option is out of its range, no document is left, or the folder holds other things.
    """
    refuse_others(folder, [_IDS, "manifest.json", "histogram.png"])
    lengths = corpus.tokens.lengths.astype(np.int64)
    ids, results = resample(lengths, corpus.source_ids().astype(np.int64), corpus.sources, policy, total, seed)
    if not len(ids):
        raise UserError(
            f"{corpus.prefix}: none of its {len(lengths)} documents is left by the length policy; "
            "lower --short-below or raise --keep-short or --total-tokens."
        )
    unmet = [result.unmet for result in results if result.unmet]
    report: dict[str, Any] = {
        "version": VERSION,
        "tokens": os.path.relpath(Path(corpus.prefix).resolve(), Path(folder).resolve()),
        "tokens_fingerprint": corpus.tokens_fingerprint,
        "policy": {name: value for name, value in dataclasses.asdict(policy).items() if name != "weights"},
        "weights": None if policy.weights is None else dict(policy.weights),
        "total_tokens": total,
        "seed": seed,
        "documents_before": len(lengths),
        "documents_after": len(ids),
        "tokens_before": int(lengths.sum()),
        "tokens_after": sum(result.tokens for result in results),
        "unmet": unmet,
        "sources": [_describe(result) for result in results],
    }
    with disk_errors_named(folder), atomic_directory(folder) as temporary:
        np.save(temporary / _IDS, ids, allow_pickle=False)
        report["fingerprint"] = fingerprint(temporary / _IDS)
        write_json(temporary / "manifest.json", report)
        _plot(results, temporary / "histogram.png")
    for sentence in unmet:
        logger.warning("%s.", sentence)
    logger.info(
        "%s: %s tokens before, %s after, %s budgets unmet.",
        folder,
        f"{report['tokens_before']:,}",
        f"{report['tokens_after']:,}",
        len(unmet),
    )
    return report


def read_documents(folder: Path, corpus: Corpus) -> Documents:
    """The resampled list of `folder`, for `write_packed_index`.

    Raises:
        UserError: it is missing or damaged, or was made for other tokens than `corpus`.
    """
    again = "resample again with tools/resample_corpus.py"
    path = Path(folder) / "manifest.json"
    manifest = read_json(path, "the resampled list's manifest", again)
    found = manifest.get("version") if isinstance(manifest, dict) else None
    if found != VERSION:
        raise UserError(f"{path}: has version {found!r}, not {VERSION}; {again}.")
    made_for = str(manifest.get("tokens_fingerprint"))
    if made_for != corpus.tokens_fingerprint:
        raise UserError(
            f"{folder}: was resampled from tokens with the fingerprint {made_for[:12]}, but {corpus.prefix}.bin has "
            f"{corpus.tokens_fingerprint[:12]}; {again}."
        )
    path = Path(folder) / _IDS
    try:
        ids: Ints = np.load(path, allow_pickle=False)
        actual = fingerprint(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}.") from None
    expected = str(manifest.get("fingerprint"))
    if actual != expected:
        raise UserError(
            f"{path}: has the fingerprint {actual[:12]}, but its manifest was written for {expected[:12]}; {again}."
        )
    made_by = {name: manifest.get(name) for name in ("policy", "weights", "total_tokens", "seed", "fingerprint")}
    return Documents(ids, made_by)


def _describe(result: SourceResult) -> dict[str, Any]:
    lengths, counts = result.lengths, result.counts
    ones = np.ones_like(counts)
    return {
        "name": result.name,
        "budget": result.budget,
        "missing_tokens": result.missing,
        "documents_before": len(lengths),
        "documents_after": int(counts.sum()),
        "tokens_before": int(lengths.sum()),
        "tokens_after": result.tokens,
        "dropped_documents": int((counts == 0).sum()),
        "dropped_tokens": int(lengths[counts == 0].sum()),
        "repeated_documents": int((counts > 1).sum()),
        "repeated_tokens": int(np.maximum(counts - 1, 0) @ lengths),
        "most_repeats": int(counts.max(initial=0)),
        "histogram": [
            {"from": 1 << power, "below": 2 << power, **before, **{f"{name}_after": n for name, n in after.items()}}
            for power, (before, after) in enumerate(
                zip(_histogram(lengths, ones), _histogram(lengths, counts), strict=True)
            )
            if before["documents"]
        ],
    }


def _histogram(lengths: Ints, counts: Ints) -> list[dict[str, int]]:
    """Documents and tokens by floor(log2(length))."""
    powers = np.frexp(lengths.astype(np.float64))[1] - 1  # exact, unlike log2
    documents, tokens = (np.bincount(powers, weights=column) for column in (counts, counts * lengths))
    return [{"documents": int(n), "tokens": int(t)} for n, t in zip(documents, tokens, strict=True)]  # exact to 2^53


def _title(result: SourceResult) -> str:
    dropped, repeated = int((result.counts == 0).sum()), int((result.counts > 1).sum())
    lines = [result.name[:40], f"{dropped:,} documents dropped, {repeated:,} repeated"]
    if result.missing:
        lines.append(f"lacks {result.missing:,} of {result.budget:,} tokens")
    return "\n".join(lines)


def _plot(results: list[SourceResult], path: Path) -> None:
    """Tokens by document length, before and after; the largest sources, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = sorted(results, key=lambda result: -int(result.lengths.sum()))[:12]
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.5 * columns, 3 * rows), squeeze=False)
    for axis, result in zip(axes.flat, shown, strict=False):
        before = [row["tokens"] for row in _histogram(result.lengths, np.ones_like(result.counts))]
        after = [row["tokens"] for row in _histogram(result.lengths, result.counts)]
        powers = np.arange(len(before))
        axis.bar(powers - 0.2, before, width=0.4, label="before")
        axis.bar(powers + 0.2, after, width=0.4, label="after")
        axis.set_xticks(powers[::2], [f"{1 << int(power):,}" for power in powers[::2]], rotation=45, fontsize=7)
        axis.set_title(_title(result), fontsize=8, color="firebrick" if result.missing else "black")
        axis.set_xlabel("document length from (tokens)", fontsize=8)
        axis.set_ylabel("tokens", fontsize=8)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
