"""One optimizer step: microbatches through megatron-core's schedule, and the numbers that come out.

The loss is a sum over all labels of the step divided once by their count, over data- and context-parallel
ranks and microbatches alike: megatron-core's `calculate_per_token_loss`. A rank whose labels are all masked
adds nothing and breaks nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.config import RunConfig
from megatron_ultralong.context_parallel import document_zigzag, zigzag
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.data.blend import BlendedDataset
from megatron_ultralong.engine import mcore
from megatron_ultralong.planning.flops import causal_pairs
from megatron_ultralong.training.setup import Run


@dataclasses.dataclass(frozen=True)
class Batch:
    """One microbatch on this rank: its share of the sequence.

    Attributes:
        tokens, labels, position_ids: int64 [B, L].
        loss_mask: float32 [B, L].
        documents: bounds over the whole sequence for document masks, or None.
        pairs: query-key pairs of all these samples that attention computes, counted on one context-parallel rank.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    documents: tuple[int, ...] | None
    pairs: int


def microbatches(run: Run, step: int) -> Iterator[Batch]:
    """This rank's microbatches of optimizer step `step` (0 for the first).

    Sample k of the run is the k-th of the blend, whatever the layout: microbatch m on data-parallel rank d
    takes the samples from the step's first + (m x dp + d) x micro on. Only this rank's positions are read.
    """
    state, config = mcore.parallel_state, run.config
    place = state.get_context_parallel_rank(), state.get_context_parallel_world_size()
    dp_rank, dp_size = state.get_data_parallel_rank(), state.get_data_parallel_world_size()
    micro = config.train.micro_batch_size
    for m in range(config.train.global_batch_size // (micro * dp_size)):
        first = run.samples_before(step) + (m * dp_size + dp_rank) * micro
        spans = held_spans(config, run.data, first, *place)
        yield _read(run, range(first, first + micro), spans)


def held_spans(
    config: RunConfig, data: BlendedDataset, sample: int, cp_rank: int, cp_size: int
) -> tuple[tuple[int, int], ...]:
    """Positions of `sample` that a rank holds: Transformer Engine cuts each masked document, our ring the whole.

    Raises:
        UserError: a document that Transformer Engine cannot cut.
    """
    if config.data.document_mask and config.parallel.attention == "te":
        bounds = data.read(sample, ((0, 1),)).cu_seqlens
        return document_zigzag.spans(bounds.tolist(), cp_rank, cp_size, sample)
    return zigzag.spans(config.data.sequence_length, cp_rank, cp_size)


def _read(run: Run, samples: range, spans: tuple[tuple[int, int], ...]) -> Batch:
    rows = [run.data.read(sample, spans) for sample in samples]
    masked = run.config.data.document_mask
    lengths = np.diff(rows[0].cu_seqlens).tolist() if masked else [run.config.data.sequence_length] * len(rows)
    counts_here = mcore.parallel_state.get_context_parallel_rank() == 0

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows])).to(run.device)

    return Batch(
        tokens=stack("tokens"),
        labels=stack("labels"),
        loss_mask=stack("loss_mask"),
        position_ids=stack("position_ids"),
        documents=tuple(rows[0].cu_seqlens.tolist()) if masked else None,
        pairs=causal_pairs(lengths) if counts_here else 0,
    )


def _forward(batches: Iterator[Batch], model: Any) -> tuple[Tensor, Any]:
    """What megatron-core's schedule calls for each microbatch."""
    batch = next(batches)
    total = model(
        input_ids=batch.tokens,
        position_ids=batch.position_ids,
        attention_mask=None,
        labels=batch.labels,
        loss_mask=batch.loss_mask,
        packed_seq_params=SequenceLayout(position_ids=batch.position_ids, documents=batch.documents),
    )
    return total, functools.partial(_count, batch)


def _count(batch: Batch, total: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The sum of the losses, the number of labels, and for the report both again and the pairs attention saw."""
    count = batch.loss_mask.sum()
    return total, count.int(), (total.detach().double(), count.double(), total.new_tensor(batch.pairs).double())


@dataclasses.dataclass(frozen=True)
class StepResult:
    """One step's numbers over the whole job.

    Attributes:
        loss: mean over labels, nats a token.
        labels: how many.
        pairs: query-key pairs that attention computed.
        grad_norm: global, before clipping.
        learning_rate: at this step.
    """

    loss: float
    labels: int
    pairs: int
    grad_norm: float
    learning_rate: float


def train_step(run: Run, step: int) -> StepResult:
    """Forward, backward and update for optimizer step `step` (0 for the first)."""
    config, dp_size = run.config, mcore.parallel_state.get_data_parallel_world_size()
    run.model.zero_grad_buffer()  # type: ignore[operator]
    run.optimizer.zero_grad()
    reports = mcore.get_forward_backward_func()(
        forward_step_func=_forward,
        data_iterator=microbatches(run, step),
        model=[run.model],
        num_microbatches=config.train.global_batch_size // (config.train.micro_batch_size * dp_size),
        seq_length=config.data.sequence_length,
        micro_batch_size=config.train.micro_batch_size,
        forward_only=False,
    )
    _, grad_norm, _ = run.optimizer.step()
    learning_rate = max(group["lr"] for group in run.optimizer.param_groups)
    run.scheduler.step(increment=1)
    loss, labels, pairs = _reduce(reports, run.device)
    return StepResult(loss, labels, pairs, float(grad_norm or 0.0), learning_rate)


def _reduce(reports: list[tuple[Tensor, ...]], device: torch.device) -> tuple[float, int, int]:
    """Loss, labels, pairs over the whole job: only the last pipeline stage has any, its TP ranks have the same."""
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    if reports and mcore.parallel_state.get_tensor_model_parallel_rank() == 0:
        totals = torch.stack([torch.stack(report) for report in reports]).sum(0)
    dist.all_reduce(totals)
    return float(totals[0] / totals[1].clamp(min=1)), int(totals[1]), int(totals[2])
