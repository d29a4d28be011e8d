"""Which samples a run reads: its packed indexes, opened on every rank and read through by the first one alone.

The files' fingerprints cost reading (4 MiB of each large file, and a tokenizer whole), so rank 0 takes them and the
others believe it: they read manifests and headers, and refuse an index that is not the one rank 0 found. A rank that
cannot open its sources stops every rank, with one sentence.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch.distributed as dist

from megatron_ultralong.config.checks import read_manifest
from megatron_ultralong.config.sections import DataSource, RunConfig
from megatron_ultralong.data.reading.blend import BlendedDataset
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.data.tokenizer.identity import foreign, tokenizer_file
from megatron_ultralong.errors import UserError, raise_problems
from megatron_ultralong.training import checkpoints

logger = logging.getLogger(__name__)
T = TypeVar("T")


def open_sources(config: RunConfig) -> list[PackedDataset]:
    """The packed indexes of the run, the same on every rank, which all call this.

    Raises:
        UserError: on every rank, if any of them cannot open one.
    """
    return _open_together(config, config.data.sources)


def open_held_out(config: RunConfig, data: Sequence[PackedDataset]) -> list[PackedDataset]:
    """The packed indexes of the run's validation, likewise, each said, and what it shares with `data`, the run's own.

    Raises:
        UserError: on every rank, if any of them cannot open one.
    """
    if not config.validation.sources:
        return []
    found = _open_together(config, config.validation.sources)
    if dist.get_rank() == 0:
        for dataset in found:
            logger.info(
                "%s: a validation reads %s of its %s samples%s",
                dataset.index.folder,
                f"{min(config.validation.samples or len(dataset), len(dataset)):,}",
                f"{len(dataset):,}",
                "; documents isolated" if dataset.document_mask else "",
            )
        for sentence in learnt_too(found, data):
            logger.warning("%s", sentence)
    return found


def learnt_too(held_out: Sequence[PackedDataset], data: Sequence[PackedDataset]) -> Iterator[str]:
    """A sentence for each held-out index with documents that the run trains on, as far as their numbers tell."""
    for one in held_out:
        own = np.unique(one.index.document_ids)
        for other in data:
            if one.index.corpus.tokens_fingerprint != other.index.corpus.tokens_fingerprint:
                continue
            if shared := int(np.isin(own, other.index.document_ids).sum()):
                yield (
                    f"{one.index.folder}: {shared:,} of its {len(own):,} documents are in {other.index.folder} too, so "
                    "the run learns them and their loss says little of others; pack both with tools/pack_corpus.py "
                    "--held-out."
                )


def _open_together(config: RunConfig, section: Sequence[DataSource]) -> list[PackedDataset]:
    """Indexes opened by every rank, whose files only the first reads through."""
    first = dist.get_rank() == 0
    found = together(lambda: _open_first(config, section) if first else [])
    fingerprints = [[dataset.fingerprint for dataset in found]]
    dist.broadcast_object_list(fingerprints)
    return together(lambda: found or _open(config, section, fingerprints[0]))


def blend(config: RunConfig, datasets: Sequence[PackedDataset], resume_from: Path | None) -> BlendedDataset:
    """The blend of the sources, from where the checkpoint's run had read it.

    Raises:
        UserError: the checkpoint does not say, or a source was packed anew since.
    """
    data = config.data
    weights = [source.weight for source in data.sources]
    if data.blend == "tokens":  # of a source's samples, the less the more of them is no padding
        weights = [w / (1 - _padding(dataset)) for w, dataset in zip(weights, datasets, strict=True)]
    together = config.train.global_batch_size if data.blend == "iterations" else 1
    start = None if resume_from is None else checkpoints.data_position(resume_from)
    return BlendedDataset(datasets, weights, config.train.seed, start, data.repacked, together)


def say_what_is_read(data: BlendedDataset) -> None:
    """A line a source: what packing made of it, its share, and where a resumed run reads on."""
    what = "samples" if data.together == 1 else "iterations"
    for dataset, weight in zip(data.datasets, data.weights, strict=True):
        manifest = dataset.index.manifest
        overlong = manifest.get("overlong_documents", 0)
        verb = {"cut": "cut", "drop": "dropped"}[manifest["overlong"]]
        logger.info(
            "%s: %s samples of %s tokens, %.1f %% of them padding%s%s%s",
            dataset.index.folder,
            f"{len(dataset):,}",
            f"{dataset.sequence_length:,}",
            100 * _padding(dataset),
            f"; {overlong:,} documents were longer and {verb}" if overlong else "",
            "; documents isolated" if dataset.document_mask else "",
            f"; {100 * weight:.1f} % of the {what}" if len(data.datasets) > 1 else "",
        )
    for sentence in data.changes:
        logger.warning("%s", sentence)


def _padding(dataset: PackedDataset) -> float:
    """Share of a source's tokens that are padding."""
    padding: int = dataset.index.manifest["padding_tokens"]
    return padding / (len(dataset) * (dataset.sequence_length + 1))


def tokenizer_problems(config: RunConfig) -> Iterator[str]:
    """Indexes of another tokenizer or chat template than the model's, whose files are read whole for it."""
    try:
        tokenizer_file(config.model.hf)
    except UserError as error:
        yield str(error)
        return
    for source in (*config.data.sources, *config.validation.sources):
        if other := foreign(config.model.hf, read_manifest(source.index)):
            yield (
                f"{source.index / 'manifest.json'}: {other}; tokenize with the model's own, or set model.hf to the "
                "model that the data was made for."
            )


def _open_first(config: RunConfig, section: Sequence[DataSource]) -> list[PackedDataset]:
    """Rank 0's: every fingerprint is taken from the files."""
    raise_problems("the configuration", list(tokenizer_problems(config)))
    return _open(config, section, [None] * len(section))


def _open(config: RunConfig, section: Sequence[DataSource], believed: Sequence[str | None]) -> list[PackedDataset]:
    return [
        PackedDataset(
            source.index,
            **dataclasses.asdict(config.data.options(source)),
            padded_length=config.padded_length,
            believed=fingerprint,
        )
        for source, fingerprint in zip(section, believed, strict=True)
    ]


def together(make: Callable[[], T]) -> T:
    """What `make` returns; its UserError is every rank's, so that none waits for one that has left."""
    made: list[T] = []
    reasons = [""] * dist.get_world_size()
    reason = ""
    try:
        made.append(make())
    except UserError as error:
        reason = str(error)
    dist.all_gather_object(reasons, reason)
    if any(reasons):
        raise UserError(next(filter(None, reasons)))
    return made[0]
