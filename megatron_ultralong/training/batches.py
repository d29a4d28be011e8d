"""A rank's microbatches: which samples they are, which positions of them are read, and when.

They are read on the host, one ahead of the computation. Tokens and labels go to the GPU from pinned memory without
waiting for it; what the host has to know, which positions have labels and what positions there are, stays with it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.context_parallel import document_zigzag, zigzag
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.data.reading.blend import BlendedDataset
from megatron_ultralong.data.reading.dataset import Sample
from megatron_ultralong.engine import mcore
from megatron_ultralong.engine.device import to_device
from megatron_ultralong.planning.flops import causal_pairs
from megatron_ultralong.training.setup import Run


@dataclasses.dataclass(frozen=True)
class Microbatch:
    """One microbatch on this rank: its share of the sequence.

    Attributes:
        tokens, labels: int64 [B, L], where the model is, or on their way there.
        loss_mask: float32 [B, L], on the host, which so knows which positions have labels.
        position_ids: int64 [B, L], on the host, which so knows whether they are those of before.
        documents: bounds over the whole sequence for document masks, or None.
        pairs: query-key pairs of all these samples that attention computes, counted on one context-parallel rank.
        source: which source they are from; of several, the first sample's (see `step.told_apart`).
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    documents: tuple[int, ...] | None
    pairs: int
    source: int

    def to(self, device: torch.device) -> Microbatch:
        """The same with what goes to the model's device on its way there."""
        return dataclasses.replace(self, tokens=to_device(self.tokens, device), labels=to_device(self.labels, device))

    def through(self, model: Any) -> Any:
        """What the model returns for it: a sum of losses, or what it judges of each label."""
        return model(
            input_ids=self.tokens,
            position_ids=self.position_ids,
            attention_mask=None,
            labels=self.labels,
            loss_mask=self.loss_mask,
            packed_seq_params=SequenceLayout(position_ids=self.position_ids, documents=self.documents),
        )


def microbatches(run: Run, step: int) -> Iterator[Microbatch]:
    """This rank's microbatches of optimizer step `step` (0 for the first).

    Sample k of the run is the k-th of the blend, whatever the layout: microbatch m on data-parallel rank d
    takes the samples from the step's first + (m x dp + d) x micro on. Only this rank's positions are read. With
    train.prefetch the next microbatch, be it the next step's first, is read while one is computed.
    """
    state, config = mcore.parallel_state, run.config
    dp_rank, dp_size = state.get_data_parallel_rank(), state.get_data_parallel_world_size()
    micro = config.train.micro_batch_size
    together = micro * dp_size
    start, count = run.samples_before(step) + dp_rank * micro, config.train.global_batch_size // together
    for m in range(count):
        first = start + m * together
        batch = run.ahead.take(first, functools.partial(_read, run, first))
        if config.train.prefetch:
            following = first + together if m + 1 < count else start + config.train.global_batch_size
            run.ahead.start(following, functools.partial(_read, run, following))
        yield batch.to(run.device)


def held_spans(
    config: RunConfig, data: BlendedDataset, sample: int, cp_rank: int, cp_size: int
) -> tuple[tuple[int, int], ...]:
    """Positions of `sample` that a rank holds: Transformer Engine cuts each masked document, our ring the whole.

    Whether documents are masked is the sample's source's to say.

    Raises:
        UserError: a document that Transformer Engine cannot cut.
    """
    if config.parallel.attention == "te" and any(config.data.masks):
        start = data.read(sample, ((0, 1),))
        if config.data.masks[start.source]:
            return document_zigzag.spans(start.cu_seqlens.tolist(), cp_rank, cp_size, sample)
    return zigzag.spans(config.padded_length, cp_rank, cp_size)


def _read(run: Run, first: int) -> Microbatch:
    """The microbatch that begins with sample `first`, on the host."""
    state = mcore.parallel_state
    cp_rank, cp_size = state.get_context_parallel_rank(), state.get_context_parallel_world_size()
    spans = held_spans(run.config, run.data, first, cp_rank, cp_size)
    rows = [run.data.read(first + i, spans) for i in range(run.config.train.micro_batch_size)]
    source = rows[0].source
    return assembled(rows, run.config.data.masks[source], run.config.data.sequence_length, cp_rank, source)


def assembled(rows: Sequence[Sample], masked: bool, sequence_length: int, cp_rank: int, source: int = 0) -> Microbatch:
    """A microbatch of what a rank holds of its samples, on the host; of one sample where documents are masked."""
    lengths = np.diff(rows[0].cu_seqlens).tolist() if masked else [sequence_length] * len(rows)

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))

    return Microbatch(
        tokens=stack("tokens"),
        labels=stack("labels"),
        loss_mask=stack("loss_mask"),
        position_ids=stack("position_ids"),
        documents=tuple(rows[0].cu_seqlens.tolist()) if masked else None,
        pairs=causal_pairs(lengths) if cp_rank == 0 else 0,
        source=source,
    )
