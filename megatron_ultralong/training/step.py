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

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.engine import host_adam, mcore, optimizer_parts
from megatron_ultralong.engine.device import to_device
from megatron_ultralong.training.batches import Microbatch, microbatches
from megatron_ultralong.training.setup import Run


def _forward(batches: Iterator[Microbatch], model: Any) -> tuple[Tensor, Any]:
    """What megatron-core's schedule calls for each microbatch."""
    batch = next(batches)
    return batch.through(model), functools.partial(_count, batch)


Report = tuple[Tensor, Tensor, Tensor, int]
"""Of one microbatch: the sum of its losses, its labels, the pairs that attention saw (fp64 scalars), its source."""


def _count(batch: Microbatch, total: Tensor) -> tuple[Tensor, Tensor, Report]:
    """The sum of the losses, the number of labels, and the report."""
    count = float(batch.loss_mask.numpy().sum(dtype=np.float64))
    labels, pairs = to_device(torch.tensor((count, batch.pairs), dtype=torch.float64), total.device)
    return total, torch.tensor(int(count), dtype=torch.int), (total.detach().double(), labels, pairs, batch.source)


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
        by_source: loss and labels of each source, where they can be told apart (see `told_apart`).
    """

    loss: float
    labels: int
    pairs: int
    grad_norm: float
    learning_rate: float
    updated: bool = True
    suspects: tuple[int, ...] = ()
    by_source: tuple[tuple[float, int], ...] = ()


def told_apart(config: RunConfig) -> int:
    """Sources whose losses are told apart: all of several, or none where a microbatch may mix them.

    A microbatch's losses are one sum. With train.micro_batch_size over 1 its samples may be of several sources, unless
    a whole step is of one (data.blend "iterations").
    """
    data = config.data
    apart = len(data.sources) > 1 and (config.train.micro_batch_size == 1 or data.blend == "iterations")
    return len(data.sources) if apart else 0


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
    loss, labels, pairs, finite, by_source = _reduce(reports, grad_norm, run.device, told_apart(config))
    suspects: tuple[int, ...] = ()
    if finite:
        _update(run, grad_norm)
    else:
        suspects = _suspects(run, step, reports)
    return StepResult(loss, labels, pairs, grad_norm, learning_rate, finite, suspects, by_source)


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


def _reduce(
    reports: list[Report], grad_norm: float, device: torch.device, sources: int
) -> tuple[float, int, int, bool, tuple[tuple[float, int], ...]]:
    """Over the whole job: loss, labels, pairs, whether loss and gradient norms are finite, loss and labels by source.

    Only the last pipeline stage has reports, and its TP ranks have the same.
    """
    totals = torch.zeros(4 + 2 * sources, dtype=torch.float64, device=device)
    if _reports_count(reports):
        totals[:3] = _sum(reports)
        for source in range(sources):
            if own := [report for report in reports if report[3] == source]:
                totals[4 + 2 * source : 6 + 2 * source] = _sum(own)[:2]
    totals[3] = 0.0 if math.isfinite(grad_norm) else 1.0
    dist.all_reduce(totals)
    loss, labels, pairs, infinite, *each = totals.tolist()
    by_source = tuple((part / max(n, 1.0), int(n)) for part, n in zip(each[::2], each[1::2], strict=True))
    return loss / max(labels, 1.0), int(labels), int(pairs), math.isfinite(loss) and not infinite, by_source


def _sum(reports: list[Report]) -> Tensor:
    """float64 [3]: losses, labels, pairs."""
    return torch.stack([torch.stack(report[:3]) for report in reports]).sum(0)


def _reports_count(reports: list[Report]) -> bool:
    return bool(reports) and mcore.parallel_state.get_tensor_model_parallel_rank() == 0


def _suspects(run: Run, step: int, reports: list[Report]) -> tuple[int, ...]:
    """Samples of the blend in the microbatches whose loss is not finite on some rank; the same on every rank."""
    state, train = mcore.parallel_state, run.config.train
    flags = torch.zeros(train.global_batch_size // train.micro_batch_size, dtype=torch.int32, device=run.device)
    if _reports_count(reports):
        own = torch.stack([~report[0].isfinite() for report in reports]).int()
        flags[state.get_data_parallel_rank() :: state.get_data_parallel_world_size()] = own
    dist.all_reduce(flags)
    first, micro = run.samples_before(step), train.micro_batch_size
    return tuple(first + place * micro + i for place in flags.nonzero().flatten().tolist() for i in range(micro))
