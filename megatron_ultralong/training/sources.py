"""Which samples a run reads: its packed indexes, opened on every rank and read through by the first one alone.

The files' fingerprints cost reading (4 MiB of each large file, and a tokenizer whole), so rank 0 takes them and the
others believe it: they read manifests and headers, and refuse an index that is not the one rank 0 found. A rank that
cannot open its sources stops every rank, with one sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from megatron_ultralong.config.checks import read_manifest
from megatron_ultralong.config.sections import DataConfig, RunConfig
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
    first = dist.get_rank() == 0
    found = _together(lambda: _open_first(config) if first else [])
    fingerprints = [[dataset.fingerprint for dataset in found]]
    dist.broadcast_object_list(fingerprints)
    return _together(lambda: found or _open(config, fingerprints[0]))


def blend(config: RunConfig, datasets: Sequence[PackedDataset], resume_from: Path | None) -> BlendedDataset:
    """The blend of the sources, from where the checkpoint's run had read it.

    Raises:
        UserError: the checkpoint does not say, or a source was packed anew since.
    """
    weights = [source.weight for source in config.data.sources]
    start = None if resume_from is None else checkpoints.data_position(resume_from)
    return BlendedDataset(datasets, weights, config.train.seed, start, config.data.repacked)


def say_what_is_read(data: BlendedDataset) -> None:
    """A line a source: what packing made of it, and where a resumed run reads on."""
    for dataset in data.datasets:
        manifest = dataset.index.manifest
        padding = manifest["padding_tokens"] / (len(dataset) * (dataset.sequence_length + 1))
        overlong = manifest.get("overlong_documents", 0)
        verb = {"cut": "cut", "drop": "dropped"}[manifest["overlong"]]
        logger.info(
            "%s: %s samples of %s tokens, %.1f %% of them padding%s",
            dataset.index.folder,
            f"{len(dataset):,}",
            f"{dataset.sequence_length:,}",
            100 * padding,
            f"; {overlong:,} documents were longer and {verb}" if overlong else "",
        )
    for sentence in data.changes:
        logger.warning("%s", sentence)


def tokenizer_problems(config: RunConfig) -> Iterator[str]:
    """Indexes of another tokenizer or chat template than the model's, whose files are read whole for it."""
    try:
        tokenizer_file(config.model.hf)
    except UserError as error:
        yield str(error)
        return
    for source in config.data.sources:
        if other := foreign(config.model.hf, read_manifest(source.index)):
            yield (
                f"{source.index / 'manifest.json'}: {other}; tokenize with the model's own, or set model.hf to the "
                "model that the data was made for."
            )


def _open_first(config: RunConfig) -> list[PackedDataset]:
    """Rank 0's: every fingerprint is taken from the files."""
    raise_problems("the configuration", list(tokenizer_problems(config)))
    return _open(config, [None] * len(config.data.sources))


def _open(config: RunConfig, believed: Sequence[str | None]) -> list[PackedDataset]:
    section: DataConfig = config.data
    return [
        PackedDataset(
            source.index,
            document_mask=section.document_mask,
            loss_on_separators=section.loss_on_separators,
            loss_on_first_tokens=section.loss_on_first_tokens,
            padded_length=config.padded_length,
            believed=fingerprint,
        )
        for source, fingerprint in zip(section.sources, believed, strict=True)
    ]


def _together(make: Callable[[], T]) -> T:
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
