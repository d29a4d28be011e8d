"""The resampled list on disk: `document_ids.npy`, `manifest.json` (the report) and `histogram.png` (the picture).

The report says, source by source, what was there, what is listed, how many documents were dropped or repeated,
the lengths before and after in powers of two, and which budgets could not be met.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.corpus import Corpus
from megatron_ultralong.data.resampling.policy import LengthPolicy
from megatron_ultralong.data.resampling.selection import Selection, select
from megatron_ultralong.data.resampling.summary import summarize
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
IDS = "document_ids.npy"
Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Documents:
    """Which documents are packed, and how often."""

    ids: Ints
    """int64 [M]: ids in the corpus, repeats allowed."""
    made_by: dict[str, Any]
    """For the manifest: how the list was made (policy, seed, fingerprint)."""


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


def write_resampled(
    corpus: Corpus, folder: Path, policy: LengthPolicy, total: int | None, seed: int, documents: Documents | None = None
) -> dict[str, Any]:
    """Resample a corpus (see `selection.select`), write the list with its report, and return the report.

    Args:
        corpus: the tokens.
        folder: where the list goes; an existing one is replaced.
        policy: what is short, what is long.
        total: tokens of the list; None: as many as there are.
        seed: of every choice.
        documents: those to choose from, as decontamination lists them; None for all of the corpus.

    Raises:
        UserError: an option is out of its range, no document is left, the folder holds other things, or the documents
            were resampled already.
    """
    if documents is not None and "decontaminated" not in documents.made_by:
        raise UserError("--documents: lists what was resampled already; name a folder of tools/decontaminate.py.")
    refuse_others(folder, [IDS, "manifest.json", "histogram.png"])
    policy.check()
    there = len(corpus.tokens) if documents is None else len(documents.ids)
    kept = _kept(corpus, policy.longest, documents)
    lengths, source_ids = corpus.tokens.lengths, corpus.source_ids()
    if kept is not None:
        lengths, source_ids = lengths[kept], source_ids[kept]
    selection = select(lengths, source_ids, corpus.sources, policy, total, seed)
    if not selection.listed:
        raise UserError(
            f"{corpus.prefix}: none of its {there} documents is left by the length policy; "
            "lower --short-below or raise --keep-short, --longest or --total-tokens."
        )
    report = _report(corpus, folder, policy, total, seed, selection)
    report["longer_documents"] = there - len(lengths)
    if documents is not None:
        report["documents"] = documents.made_by
    with disk_errors_named(folder), atomic_directory(folder) as temporary:
        ids = selection.ids() if kept is None else (kept[some] for some in selection.ids())
        write_ids(temporary / IDS, selection.listed, ids)
        report["fingerprint"] = fingerprint(temporary / IDS)
        write_json(temporary / "manifest.json", report)
        _plot(report["sources"], temporary / "histogram.png")
    for sentence in report["unmet"]:
        logger.warning("%s.", sentence)
    before, after = f"{report['tokens_before']:,}", f"{report['tokens_after']:,}"
    logger.info("%s: %s tokens before, %s after, %s budgets unmet.", folder, before, after, len(report["unmet"]))
    return report


def _kept(corpus: Corpus, longest: int | None, documents: Documents | None) -> Ints | None:
    """Ids of the documents to choose from, those that are longer left out; None for all of the corpus."""
    ids, lengths = None if documents is None else documents.ids, corpus.tokens.lengths
    if longest is None:
        return ids
    return np.flatnonzero(lengths <= longest) if ids is None else ids[lengths[ids] <= longest]


def _report(
    corpus: Corpus, folder: Path, policy: LengthPolicy, total: int | None, seed: int, selection: Selection
) -> dict[str, Any]:
    """The manifest but for the list's fingerprint."""
    sources = summarize(selection, corpus.sources)
    unmet = [
        f"source '{name}' lacks {missing:,} of {budget:,} tokens: it {reason}"
        for name, budget, missing, reason in zip(
            corpus.sources, selection.budgets, selection.missing, selection.reasons, strict=True
        )
        if reason
    ]
    return {
        "version": VERSION,
        "tokens": os.path.relpath(Path(corpus.prefix).resolve(), Path(folder).resolve()),
        "tokens_fingerprint": corpus.tokens_fingerprint,
        "policy": {name: value for name, value in dataclasses.asdict(policy).items() if name != "weights"},
        "weights": None if policy.weights is None else dict(policy.weights),
        "total_tokens": total,
        "seed": seed,
        "documents_before": len(selection.lengths),
        "documents_after": selection.listed,
        "tokens_before": sum(source["tokens_before"] for source in sources),
        "tokens_after": sum(source["tokens_after"] for source in sources),
        "unmet": unmet,
        "sources": sources,
    }


def write_ids(path: Path, count: int, pieces: Iterable[Ints]) -> None:
    """What np.save writes of a whole list of so many ids, which comes in pieces and never exists."""
    header = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for ids in pieces:
            stream.write(np.ascontiguousarray(ids, dtype="<i8").data)


def read_documents(folder: Path, corpus: Corpus) -> Documents:
    """The list of `folder`, resampled or decontaminated, for `write_packed_index`.

    Raises:
        UserError: it is missing or damaged, or was made for other tokens than `corpus`.
    """
    again = "list its documents again with tools/resample_corpus.py or tools/decontaminate.py"
    path = Path(folder) / "manifest.json"
    manifest = read_json(path, "the manifest of a list of documents", again)
    found = manifest.get("version") if isinstance(manifest, dict) else None
    if found != VERSION:
        raise UserError(f"{path}: has version {found!r}, not {VERSION}; {again}.")
    made_for = str(manifest.get("tokens_fingerprint"))
    if made_for != corpus.tokens_fingerprint:
        raise UserError(
            f"{folder}: lists documents of tokens with the fingerprint {made_for[:12]}, but {corpus.prefix} has "
            f"{corpus.tokens_fingerprint[:12]}; {again}."
        )
    path = Path(folder) / IDS
    try:
        ids: Ints = np.load(path, allow_pickle=False)
        actual = fingerprint(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}.") from None
    if "fingerprint" not in manifest:
        raise UserError(f"{folder}: is no list of documents (a packed index, perhaps); {again}.")
    expected = str(manifest["fingerprint"])
    if actual != expected:
        raise UserError(
            f"{path}: has the fingerprint {actual[:12]}, but its manifest was written for {expected[:12]}; {again}."
        )
    made_by = {name: manifest.get(name) for name in ("policy", "weights", "total_tokens", "seed", "fingerprint")}
    if "decontaminated" in manifest:
        made_by = {name: manifest[name] for name in ("decontaminated", "fingerprint")}
    if "documents" in manifest:
        made_by["documents"] = manifest["documents"]
    return Documents(ids, made_by)


def _title(source: dict[str, Any]) -> str:
    dropped, repeated = source["dropped_documents"], source["repeated_documents"]
    lines = [source["name"][:40], f"{dropped:,} documents dropped, {repeated:,} repeated"]
    if source["missing_tokens"]:
        lines.append(f"lacks {source['missing_tokens']:,} of {source['budget']:,} tokens")
    return "\n".join(lines)


def _plot(sources: list[dict[str, Any]], path: Path) -> None:
    """Tokens by document length, before and after; the largest sources, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = sorted(sources, key=lambda source: -int(source["tokens_before"]))[:12]
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.5 * columns, 3 * rows), squeeze=False)
    for axis, source in zip(axes.flat, shown, strict=False):
        powers = np.arange(max((row["from"].bit_length() for row in source["histogram"]), default=0))
        by_power = {row["from"].bit_length() - 1: row for row in source["histogram"]}
        for name, shift, label in (("tokens", -0.2, "before"), ("tokens_after", 0.2, "after")):
            heights = [by_power.get(power, {}).get(name, 0) for power in powers.tolist()]
            axis.bar(powers + shift, heights, width=0.4, label=label)
        axis.set_xticks(powers[::2], [f"{1 << int(power):,}" for power in powers[::2]], rotation=45, fontsize=7)
        axis.set_title(_title(source), fontsize=8, color="firebrick" if source["missing_tokens"] else "black")
        axis.set_xlabel("document length from (tokens)", fontsize=8)
        axis.set_ylabel("tokens", fontsize=8)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
