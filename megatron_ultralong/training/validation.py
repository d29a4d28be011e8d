"""Validation of a run while it goes on: when, on what layout, what it remembers, what it says.

Held-out samples go forward through the run's own model, in megatron-core's schedule, in evaluation mode and without
gradients: a pass keeps no activations, and the head makes no gradients, so that it takes less memory than a step. The
samples are the same every time. Training's data, its position and its random states are not touched, so that a run's
losses and weights are the same bytes with and without.

A validation comes before the checkpoint of its step, and what was found so far is part of each checkpoint: a run that
is killed before or in a validation repeats it after it has resumed, one that is killed later does not. A request to
stop cuts it off between two calls of the schedule, each of as many samples as a step.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.config.validation_checks import higher_is_better
from megatron_ultralong.engine import mcore
from megatron_ultralong.engine.replacing import replaced
from megatron_ultralong.training.ahead import Ahead
from megatron_ultralong.training.batches import Microbatch
from megatron_ultralong.training.held_out import Task, identity, tasks, unlabelled
from megatron_ultralong.training.metrics import ValidationMetrics
from megatron_ultralong.training.recorder import Recorder
from megatron_ultralong.training.setup import Run
from megatron_ultralong.training.stopping import StopRequests
from megatron_ultralong.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Standing:
    """What a run's validations have found so far, as its checkpoints hold it.

    Attributes:
        step: of the last validation; -1: there was none.
        lowest: of each loss by name, the lowest so far.
        metric: `validation.keep_best`.
        best: its best value so far; None: none yet.
        best_step: the step of that; -1: none.
        unimproved: validations since.
        ended: there were so many of these that the run ended.
        judged_by: `held_out.identity` of what was measured, without which values cannot be compared.
    """

    step: int = -1
    lowest: dict[str, float] = dataclasses.field(default_factory=dict)
    metric: str = ""
    best: float | None = None
    best_step: int = -1
    unimproved: int = 0
    ended: bool = False
    judged_by: str = ""

    def take_up(self, metric: str, judged_by: str) -> bool:
        """Go on under a run's configuration; whether what was found before is of other samples, and so forgotten."""
        others = self.step >= 0 and judged_by != self.judged_by
        if others:
            self.lowest = {}
        if others or metric != self.metric:
            self.best, self.best_step, self.unimproved = None, -1, 0
        self.metric, self.judged_by = metric, judged_by
        return others

    def note(self, found: ValidationMetrics, warn: float) -> Iterator[str]:
        """Remember a validation; a sentence for each loss that has risen by more than `warn` nats, if that is not 0."""
        self.step = found.step
        for name, value in found.metrics.items():
            if not name.startswith("loss/") or not math.isfinite(value):
                continue
            lowest = self.lowest.setdefault(name, value)
            if 0 < warn < value - lowest:
                yield (
                    f"validation after step {found.step}: {name} is {value:.4f}, {value - lowest:.4f} above its lowest "
                    f"so far, {lowest:.4f}"
                )
            self.lowest[name] = min(lowest, value)
        value = found.metrics.get(self.metric, math.nan)
        sign = -1.0 if higher_is_better(self.metric) else 1.0
        if math.isfinite(value) and (self.best is None or sign * value < sign * self.best):
            self.best, self.best_step, self.unimproved = value, found.step, 0
        elif self.metric:
            self.unimproved += 1


class Validator:
    """Validates a run; every rank has one and calls it at the same steps.

    Args:
        run: what is validated; its `standing` is kept up to date.
        requests: may cut a validation off, and learns how long one takes.
        watchdog: is told what goes on.
        recorder: rank 0's.
    """

    def __init__(self, run: Run, requests: StopRequests, watchdog: Watchdog, recorder: Recorder | None) -> None:
        self.run, self.requests, self.watchdog, self.recorder = run, requests, watchdog, recorder
        self.section = run.config.validation
        self.standing = Standing(**run.standing or {})
        if self.section.sources and self.standing.take_up(self.section.keep_best, identity(run)):
            logger.warning(
                "[validation] measures other samples than it did before step %d: its losses are compared, and the best "
                "checkpoint is looked for, from here on.",
                run.step,
            )
        self.standing.ended = self._is_enough()
        self._ahead = Ahead()

    def due(self, step: int) -> bool:
        """Whether a validation belongs after `step` steps and is not known to have been."""
        if not self.section.sources or step <= self.standing.step:
            return False
        if step == self.run.config.train.steps:
            return True
        interval = self.section.interval
        return self.section.at_start if step == 0 else interval > 0 and step % interval == 0

    def after(self, step: int) -> str:
        """Validate after `step` steps if it is due; what cut it off, or ""."""
        if not self.due(step):
            return ""
        self.watchdog.step = f"the validation after step {step}"
        started = time.monotonic()
        measured = tasks(self.run)
        stopped_by = self._forward(measured)
        if stopped_by:
            return stopped_by
        metrics, labels = _added_up(measured)
        found = ValidationMetrics(step, metrics, labels, time.monotonic() - started)
        self.requests.took("validation", found.seconds)
        if self.recorder is not None:
            self.recorder.validated(found)
        for sentence in self.standing.note(found, self.section.warn):
            logger.warning("%s", sentence)
        if self.standing.best_step == step and self.standing.best is not None:
            logger.info("%s %.4f after step %d is the best so far", self.standing.metric, self.standing.best, step)
        self.standing.ended = self._is_enough()
        self.run.standing = dataclasses.asdict(self.standing)
        return ""

    def improved(self, step: int) -> bool:
        """Whether the validation after `step` steps is the best so far by `validation.keep_best`."""
        return self.standing.best_step == step

    @property
    def ended(self) -> str:
        """Why the run need not go on, by `validation.patience`, or ""."""
        if not self.standing.ended:
            return ""
        best = self.standing.best
        found = "never finite" if best is None else f"best after step {self.standing.best_step}, {best:.4f}"
        return f"validation.patience {self.section.patience}: {self.standing.metric} was {found}"

    def _is_enough(self) -> bool:
        return 0 < self.section.patience <= self.standing.unimproved

    def _forward(self, measured: Sequence[Task]) -> str:
        """Take every sample of the tasks through the model; what cut it off, or ""."""
        model: Any = self.run.model
        self.run.gather_weights()
        model.eval()
        try:
            with torch.no_grad(), replaced(self.run.weights, "judges", True):
                for task in measured:
                    for numbers in self._calls(task):
                        if stopped_by := self.requests.agreed(self.run.device):
                            return stopped_by
                        self._call(task, numbers)
        finally:
            model.train()
        return ""

    def _calls(self, task: Task) -> Iterator[range]:
        """The samples of each call of the schedule: as many as a step has at most."""
        ranks = mcore.parallel_state.get_data_parallel_world_size()
        most = max(self.run.config.train.global_batch_size, ranks)
        for first in range(0, task.count, most):
            yield range(first, min(first + most, task.count))

    def _call(self, task: Task, numbers: range) -> None:
        """Samples through the model on every rank: data-parallel rank d takes the d-th of each group of them."""
        state = mcore.parallel_state
        ranks, rank = state.get_data_parallel_world_size(), state.get_data_parallel_rank()
        own = [*numbers[rank::ranks]]
        rounds = -(-len(numbers) // ranks)
        own += [-1] * (rounds - len(own))
        mcore.get_forward_backward_func()(
            forward_step_func=functools.partial(_forward_step, task),
            data_iterator=self._batches(task, own, numbers[0]),
            model=[self.run.model],
            num_microbatches=rounds,
            seq_length=task.length,
            micro_batch_size=1,
            forward_only=True,
        )

    def _batches(self, task: Task, own: Sequence[int], other: int) -> Iterator[tuple[int, Microbatch]]:
        """This rank's samples, -1 for none: then `other` without its labels. One is read ahead, as in training."""

        def read(number: int) -> Microbatch:
            return task.read(number) if number >= 0 else unlabelled(task.read(other))

        for place, number in enumerate(own):
            batch = self._ahead.take((id(task), place, number), functools.partial(read, number))
            if self.run.config.train.prefetch and place + 1 < len(own):
                following = own[place + 1]
                self._ahead.start((id(task), place + 1, following), functools.partial(read, following))
            yield number, batch.to(self.run.device)


def _forward_step(task: Task, batches: Iterator[tuple[int, Microbatch]], model: Any) -> tuple[Tensor, Any]:
    """What megatron-core's schedule calls for each microbatch."""
    number, batch = next(batches)
    return batch.through(model), functools.partial(_note, task, number, batch)


def _note(task: Task, number: int, batch: Microbatch, judged_2BL: Tensor) -> tuple[Tensor, Tensor, tuple[()]]:
    """The last stage's: add a sample to its task. The schedule gets a loss of 0 over no labels."""
    if number >= 0:
        task.add(number, batch, judged_2BL)
    return judged_2BL.new_zeros(()), torch.tensor(0, dtype=torch.int), ()


def _added_up(measured: Sequence[Task]) -> tuple[dict[str, float], dict[str, int]]:
    """The metrics of all tasks over the whole job, on every rank; the ranks of a TP group hold the same sums."""
    totals = torch.cat([task.totals.flatten() for task in measured])
    if mcore.parallel_state.get_tensor_model_parallel_rank() != 0:
        totals.zero_()
    dist.all_reduce(totals)
    metrics, labels = dict[str, float](), dict[str, int]()
    parts = totals.cpu().split([task.totals.numel() for task in measured])
    for task, part in zip(measured, parts, strict=True):
        found, counts = task.metrics(part.view(task.totals.shape))
        metrics |= found
        labels |= counts
    return metrics, labels
