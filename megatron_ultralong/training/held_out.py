"""What a validation reads and adds up: held-out samples by bucket of context, and needles by prompt.

A task has samples by number, each one microbatch of one sample, and sums in fp64 that every rank adds to for the
positions it holds; added up over the ranks they are the whole's, whatever the layout. With document masks the context
of a position is that within its document.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from megatron_ultralong.config.validation_checks import bucket_bounds, bucket_names, source_names
from megatron_ultralong.context_parallel import document_zigzag, zigzag
from megatron_ultralong.data.reading.dataset import PackedDataset, Sample, Spans
from megatron_ultralong.engine import mcore
from megatron_ultralong.engine.device import to_device
from megatron_ultralong.training.batches import Microbatch, assembled
from megatron_ultralong.training.needle_prompts import NeedlePrompt
from megatron_ultralong.training.setup import Run

Metrics = dict[str, float]


class Task(Protocol):
    """Samples that go through the model one a microbatch.

    Attributes:
        count: samples.
        length: positions of each, over all context-parallel ranks.
        totals: fp64 sums of this rank.
    """

    count: int
    length: int
    totals: Tensor

    def read(self, number: int) -> Microbatch:
        """This rank's part of a sample, on the host."""

    def add(self, number: int, batch: Microbatch, judged_2BL: Tensor) -> None:
        """Add what `likelihoods.judged` says of a sample to the totals."""

    def metrics(self, totals: Tensor) -> tuple[Metrics, dict[str, int]]:
        """What the totals of all ranks come to: values, and the labels behind each."""


def tasks(run: Run) -> list[Task]:
    """Everything that a validation of this run reads."""
    bounds = bucket_bounds(run.config, run.description.hf_config)
    names = source_names(run.config)
    found: list[Task] = [
        HeldOutSource(run, dataset, name, bounds) for dataset, name in zip(run.held_out, names, strict=True)
    ]
    by_length = itertools.groupby(run.needles, key=lambda prompt: prompt.length)
    return found + [Needles(run, length, list(prompts)) for length, prompts in by_length]


def identity(run: Run) -> str:
    """A digest of which samples and needles a validation reads, and how: of another the losses are other ones."""
    section = run.config.validation
    options = [dataclasses.asdict(run.config.data.options(source)) for source in section.sources]
    counts = [min(section.samples or len(dataset), len(dataset)) for dataset in run.held_out]
    sources = sorted(zip((dataset.fingerprint for dataset in run.held_out), map(str, options), counts, strict=True))
    needles = [section.needle_depths, section.needle_keys, section.needle_form] if section.needles else []
    return hashlib.sha256(json.dumps([sources, section.needles, needles]).encode()).hexdigest()[:16]


class HeldOutSource:
    """The samples of one source that are read: evenly spread over it, the same every time.

    Args:
        run: the run.
        dataset: of the source.
        name: for metrics.
        bounds: tokens of context that end each bucket.
    """

    def __init__(self, run: Run, dataset: PackedDataset, name: str, bounds: tuple[int, ...]) -> None:
        self.run, self.dataset, self.name, self.bounds = run, dataset, name, bounds
        self.count = min(run.config.validation.samples or len(dataset), len(dataset))
        self.length = run.config.padded_length
        self.totals = torch.zeros(len(bounds), 2, dtype=torch.float64, device=run.device)

    def read(self, number: int) -> Microbatch:
        """See `Task`."""
        rank, size = _context_ranks()
        sample, masked = number * len(self.dataset) // self.count, self.dataset.document_mask
        spans: Spans = zigzag.spans(self.length, rank, size)
        if masked and self.run.config.parallel.attention == "te":  # which cuts each document
            bounds = self.dataset.read(sample, ((0, 1),)).cu_seqlens
            spans = document_zigzag.spans(bounds.tolist(), rank, size, sample)
        row = self.dataset.read(sample, spans)
        return assembled([row], masked, self.run.config.data.sequence_length, rank)

    def add(self, number: int, batch: Microbatch, judged_2BL: Tensor) -> None:
        """See `Task`."""
        bucket_BL = np.searchsorted(self.bounds, batch.position_ids.numpy() + 1)
        for bucket in range(len(self.bounds)):
            counts_BL = (batch.loss_mask.numpy() != 0) & (bucket_BL == bucket)
            if counts_BL.any():
                self.totals[bucket, 0] -= _sum_where(counts_BL, judged_2BL[0])
                self.totals[bucket, 1] += int(counts_BL.sum())

    def metrics(self, totals: Tensor) -> tuple[Metrics, dict[str, int]]:
        """See `Task`."""
        rows = {self.name: totals.sum(0)}
        if len(self.bounds) > 1:
            buckets = bucket_names(self.bounds)
            rows |= {f"{self.name}/{bucket}": row for bucket, row in zip(buckets, totals, strict=True)}
        found, labels = Metrics(), dict[str, int]()
        for name, row in rows.items():
            nats, count = row.tolist()
            if count:
                found[f"loss/{name}"] = nats / count
                labels[name] = int(count)
        exponent = {name.replace("loss/", "perplexity/", 1): float(np.exp(loss)) for name, loss in found.items()}
        return found | exponent, labels


class Needles:
    """Prompts of one length; a needle is found if every token of its answer is the likeliest after those before.

    Args:
        run: the run; the text is that of its first validation source.
        length: tokens of each prompt with its answer.
        prompts: what is hidden and asked.
    """

    def __init__(self, run: Run, length: int, prompts: Sequence[NeedlePrompt]) -> None:
        self.prompts, self.text, self.tokens = prompts, run.held_out[0], length
        self.count, self.length = len(prompts), run.config.divisible(length)
        self.totals = torch.zeros(self.count, 3, dtype=torch.float64, device=run.device)

    def read(self, number: int) -> Microbatch:
        """See `Task`."""
        prompt = self.prompts[number]
        room = ((0, max(prompt.room, 1)),)
        ids = prompt.ids(self.text.read(number % len(self.text), room).tokens[: prompt.room])
        padded = np.zeros(self.length + 1, dtype=np.int64)
        padded[: len(ids)] = ids
        mask = np.zeros(self.length, dtype=np.float32)
        mask[len(ids) - 1 - len(prompt.answer) : len(ids) - 1] = 1  # each predicts the token behind it
        rank, size = _context_ranks()
        places = np.concatenate([np.arange(*span) for span in zigzag.spans(self.length, rank, size)])
        bounds = np.array([0, self.length], dtype=np.int32)
        row = Sample(padded[places], padded[places + 1], mask[places], places, bounds)
        return assembled([row], False, self.length, rank)

    def add(self, number: int, batch: Microbatch, judged_2BL: Tensor) -> None:
        """See `Task`."""
        answer_BL = batch.loss_mask.numpy() != 0
        if count := int(answer_BL.sum()):
            self.totals[number, 0] += count - _sum_where(answer_BL, judged_2BL[1])
            self.totals[number, 1] -= _sum_where(answer_BL, judged_2BL[0])
            self.totals[number, 2] += count

    def metrics(self, totals: Tensor) -> tuple[Metrics, dict[str, int]]:
        """See `Task`."""
        wrong, nats, labels = totals.unbind(1)
        found = {
            f"needles/{self.tokens}": float((wrong == 0).double().mean()),
            f"needle_loss/{self.tokens}": float(nats.sum() / labels.sum()),
        }
        return found, {f"needles/{self.tokens}": int(labels.sum())}


def unlabelled(batch: Microbatch) -> Microbatch:
    """The same without labels that count: what a rank reads that has no sample left, while others have."""
    return dataclasses.replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))


def _context_ranks() -> tuple[int, int]:
    state = mcore.parallel_state
    return state.get_context_parallel_rank(), state.get_context_parallel_world_size()


def _sum_where(places_BL: np.ndarray, values_BL: Tensor) -> Tensor:
    """fp64 sum over some places, known on the host."""
    where_BL = to_device(torch.from_numpy(places_BL), values_BL.device)
    return torch.where(where_BL, values_BL, 0.0).sum(dtype=torch.float64)
