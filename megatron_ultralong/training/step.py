"""One optimizer step: microbatches through megatron-core's schedule, and the numbers that come out.

The loss is a sum over all labels of the step divided once by their count, over data- and context-parallel
ranks and microbatches alike: megatron-core's `calculate_per_token_loss`. A rank whose labels are all masked
adds nothing and breaks nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import host_adam, mcore, optimizer_parts
from megatron_ultralong.engine.device import to_device
from megatron_ultralong.training.batches import Microbatch, microbatches
from megatron_ultralong.training.setup import Run


def _forward(batches: Iterator[Microbatch], model: Any) -> tuple[Tensor, Any]:
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


def _count(batch: Microbatch, total: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The sum of the losses, the number of labels, and for the report both again and the pairs attention saw."""
    count = float(batch.loss_mask.numpy().sum(dtype=np.float64))
    labels, pairs = to_device(torch.tensor((count, batch.pairs), dtype=torch.float64), total.device)
    return total, torch.tensor(int(count), dtype=torch.int), (total.detach().double(), labels, pairs)


@dataclasses.dataclass(frozen=True)
class StepResult:
    """One step's numbers over the whole job.

    Attributes:
        loss: mean over labels, nats a token.
        labels: how many.
        pairs: query-key pairs that attention computed.
        grad_norm: global, before clipping.
        learning_rate: at this step.
        updated: False if loss or gradient was not finite: weights, optimizer and schedule are as before.
        suspects: then the samples of the blend whose own loss was not finite; none if only the gradient was not.
    """

    loss: float
    labels: int
    pairs: int
    grad_norm: float
    learning_rate: float
    updated: bool = True
    suspects: tuple[int, ...] = ()


def train_step(run: Run, step: int) -> StepResult:
    """Forward, backward and, if loss and gradient are finite, update for optimizer step `step` (0 for the first)."""
    config, dp_size = run.config, mcore.parallel_state.get_data_parallel_world_size()
    run.model.zero_grad_buffer()  # type: ignore[operator]
    run.optimizer.zero_grad()
    reports = mcore.get_forward_backward_func()(
        forward_step_func=_forward,
        data_iterator=microbatches(run, step),
        model=[run.model],
        num_microbatches=config.train.global_batch_size // (config.train.micro_batch_size * dp_size),
        seq_length=config.padded_length,
        micro_batch_size=config.train.micro_batch_size,
        forward_only=False,
    )
    learning_rate = max(group["lr"] for group in run.optimizer.param_groups)
    run.optimizer.prepare_grads()
    grad_norm = float(run.optimizer.get_grad_norm() or 0.0)
    loss, labels, pairs, finite = _reduce(reports, grad_norm, run.device)
    suspects: tuple[int, ...] = ()
    if finite:
        _update(run, grad_norm)
    else:
        suspects = _suspects(run, step, reports)
    return StepResult(loss, labels, pairs, grad_norm, learning_rate, finite, suspects)


def _update(run: Run, grad_norm: float) -> None:
    """Clip and step, as megatron-core's optimizer.step does after it has found the norm."""
    clip = run.config.optimizer.clip_grad
    for part in optimizer_parts.parts(run.optimizer):
        if clip > 0.0 and (parameters := part.get_parameters()):
            mcore.clip_grad_by_total_norm_fp32(parameters, clip, grad_norm)
    for host in host_adam.of(run.optimizer):  # before its weights are gathered
        host.step(min(1.0, clip / (grad_norm + 1.0e-6)) if clip > 0.0 else 1.0)
    run.optimizer.step_with_ready_grads()
    run.scheduler.step(increment=1)


def _reduce(reports: list[tuple[Tensor, ...]], grad_norm: float, device: torch.device) -> tuple[float, int, int, bool]:
    """Loss, labels, pairs over the whole job, and whether the loss and every rank's gradient norm are finite.

    Only the last pipeline stage has reports, and its TP ranks have the same.
    """
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    if _reports_count(reports):
        totals[:3] = torch.stack([torch.stack(report) for report in reports]).sum(0)
    totals[3] = 0.0 if math.isfinite(grad_norm) else 1.0
    dist.all_reduce(totals)
    loss, labels, pairs, infinite = totals.tolist()
    return loss / max(labels, 1.0), int(labels), int(pairs), math.isfinite(loss) and not infinite


def _reports_count(reports: list[tuple[Tensor, ...]]) -> bool:
    return bool(reports) and mcore.parallel_state.get_tensor_model_parallel_rank() == 0


def _suspects(run: Run, step: int, reports: list[tuple[Tensor, ...]]) -> tuple[int, ...]:
    """Samples of the blend in the microbatches whose loss is not finite on some rank; the same on every rank."""
    state, train = mcore.parallel_state, run.config.train
    flags = torch.zeros(train.global_batch_size // train.micro_batch_size, dtype=torch.int32, device=run.device)
    if _reports_count(reports):
        own = torch.stack([~report[0].isfinite() for report in reports]).int()
        flags[state.get_data_parallel_rank() :: state.get_data_parallel_world_size()] = own
    dist.all_reduce(flags)
    first, micro = run.samples_before(step), train.micro_batch_size
    return tuple(first + place * micro + i for place in flags.nonzero().flatten().tolist() for i in range(micro))
