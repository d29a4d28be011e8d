"""A run without its run: build everything, take two steps at full length, say what they cost, keep nothing."""

from __future__ import annotations

import logging
import time

import torch
import torch.distributed as dist

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.engine import groups
from megatron_ultralong.planning.memory import StepMemory
from megatron_ultralong.progress import duration
from megatron_ultralong.training.measured_memory import measured, report
from megatron_ultralong.training.setup import Run, prepare
from megatron_ultralong.training.step import train_step

logger = logging.getLogger(__name__)


def dry_run(config: RunConfig) -> StepMemory:
    """Log the memory by part of the rank that needs most, and the time a step; write nothing.

    Two steps are taken: the first makes the optimizer's state and warms up, the second is measured. On a CPU
    measuring slows it down, so the time is the first one's.

    Returns:
        The highest of each part over all ranks.

    Raises:
        UserError: whatever would keep the run itself from starting.
    """
    try:
        return _measure(prepare(config))
    finally:
        groups.finalize()


def _measure(run: Run) -> StepMemory:
    first = _timed(run)
    with measured(run) as own:
        second = _timed(run)
    seconds = first if run.device.type == "cpu" else second
    config = run.config
    tokens = config.train.global_batch_size * config.data.sequence_length
    logger.info(
        "one step: %.2f s, %s tokens/s; %d steps take %s",
        seconds,
        f"{tokens / seconds:,.0f}",
        config.train.steps - run.step,
        duration(seconds * (config.train.steps - run.step)),
    )
    return report(run, own)


def _timed(run: Run) -> float:
    """Seconds of the run's next step, which is taken with this run's first samples and then forgotten."""
    dist.barrier()
    started = time.monotonic()
    train_step(run, run.step)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return time.monotonic() - started
