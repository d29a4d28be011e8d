"""A run without its run: build everything, take two steps at full length, say what they cost, keep nothing."""

from __future__ import annotations

import logging
import time

import torch
import torch.distributed as dist

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.planning.memory import StepMemory
from megatron_ultralong.progress import duration
from megatron_ultralong.training.measured_memory import measured, report
from megatron_ultralong.training.setup import Run, prepare
from megatron_ultralong.training.step import train_step
from megatron_ultralong.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


def dry_run(config: RunConfig) -> StepMemory:
    """Log the memory by part of the rank that needs most, and the time a step; write nothing.

    Two steps are taken: the first makes the optimizer's state and warms up, the second is measured. On a CPU
    measuring slows it down, so the time is the first one's. Where each step is of one source, two are taken of each,
    memory is the highest of them and time their mean by weight.

    Returns:
        The highest of each part over all ranks.

    Raises:
        UserError: whatever would keep the run itself from starting.
    """
    with Watchdog(config.parallel.timeout) as watchdog:
        return _measure(prepare(config, watchdog.start))


def _measure(run: Run) -> StepMemory:
    steps = _steps(run)
    first = [_timed(run, step) for step in steps]
    with measured(run) as own:
        second = [_timed(run, step) for step in steps]
    taken = first if run.device.type == "cpu" else second
    seconds = sum(share * each for share, each in zip(steps.values(), taken, strict=True))
    config = run.config
    tokens = config.train.global_batch_size * config.data.sequence_length
    logger.info(
        "one step: %.2f s, %s tokens/s; %d steps take %s%s",
        seconds,
        f"{tokens / seconds:,.0f}",
        config.train.steps - run.step,
        duration(seconds * (config.train.steps - run.step)),
        " without their validations" if config.validation.sources else "",
    )
    return report(run, own)


def _steps(run: Run) -> dict[int, float]:
    """The steps to take, and the share of the run's that each stands for: its next, or the next of each source."""
    if run.config.data.blend != "iterations":
        return {run.step: 1.0}
    found = {run.data.locate(run.samples_before(run.step))[0]: run.step}
    for step in range(run.step + 1, run.config.train.steps):
        if len(found) == len(run.data.datasets):
            break
        found.setdefault(run.data.locate(run.samples_before(step))[0], step)
    whole = sum(run.data.weights[source] for source in found)
    return {step: run.data.weights[source] / whole for source, step in found.items()}


def _timed(run: Run, step: int) -> float:
    """Seconds of a step, which is then forgotten."""
    dist.barrier()
    started = time.monotonic()
    train_step(run, step)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return time.monotonic() - started
