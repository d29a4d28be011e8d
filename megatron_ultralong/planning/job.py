"""A whole job from the time of its step: hours, GPU-hours, checkpoints, and what failures are expected to cost.

Failures come at a constant rate a GPU. Between two checkpoints a failure costs on average half of what lies between
them and the restart; writing costs its own time. The interval that makes the sum least is Young's (Comm. ACM 17, 1974),
sqrt(2 C M) for C seconds of writing and M seconds between failures, in Daly's higher order (FGCS 22, 2006).
"""

from __future__ import annotations

import dataclasses
import math

from megatron_ultralong.config.sections import RunConfig

MTBF = 50_000.0
"""GPU-hours between failures that end a job: 16,384 H100 for 54 days had 419 of them (Llama 3, arXiv 2407.21783)."""
DISK = 10.0
"""GB/s that the shared disk takes from a whole job: an assumption; examples/slurm/health.py measures a machine's."""
RESTART = 600.0
"""Seconds from a failure until the job computes again: an assumption."""


@dataclasses.dataclass(frozen=True)
class Reliability:
    """What a cluster is like beside its speed."""

    mtbf: float = MTBF
    """GPU-hours between failures that end a job."""
    disk: float = DISK
    """GB/s that the shared disk takes from the whole job."""
    restart: float = RESTART
    """Seconds from a failure until the job computes again."""


@dataclasses.dataclass(frozen=True)
class JobPlan:
    """One stage of training.

    Attributes:
        steps: in all.
        tokens: in all.
        step_seconds: of one.
        ranks: GPUs.
        checkpoint_bytes: of one checkpoint: weights, main weights and both moments.
        write_seconds: of one, all machines writing their shares.
        failure_seconds: between two failures of the job, on average.
        interval: steps between checkpoints that lose least.
        restart: seconds a failure costs beside the steps that are lost.
    """

    steps: int
    tokens: int
    step_seconds: float
    ranks: int
    checkpoint_bytes: float
    write_seconds: float
    failure_seconds: float
    interval: int
    restart: float

    @property
    def compute_seconds(self) -> float:
        """If nothing failed and nothing were written."""
        return self.steps * self.step_seconds

    @property
    def lost_seconds(self) -> float:
        """Expected: writing, and what failures throw away."""
        return lost(self.compute_seconds, self.interval * self.step_seconds, self.write_seconds, self)

    @property
    def hours(self) -> float:
        """Expected, in all."""
        return (self.compute_seconds + self.lost_seconds) / 3600

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs."""
        return self.hours * self.ranks


def lost(compute: float, interval: float, write: float, plan: JobPlan) -> float:
    """Seconds beyond `compute` with a checkpoint every `interval` seconds of it.

    Writes take compute / interval x write. Failures come in what is computed, written and done again: with f of them
    in a second, each losing half an interval, half a write and a restart, T = (compute + writes) / (1 - f x that).
    """
    written = compute + compute / interval * write
    share = (interval / 2 + write / 2 + plan.restart) / plan.failure_seconds
    return written / (1 - share) - compute if share < 1 else math.inf


def best_interval(write: float, between: float) -> float:
    """Seconds of computing between checkpoints: Daly's, for `write` seconds each and `between` two failures."""
    if write >= 2 * between:
        return between
    ratio = math.sqrt(write / (2 * between))
    return max(write, math.sqrt(2 * write * between) * (1 + ratio / 3 + ratio**2 / 9) - write)


def plan_job(
    config: RunConfig, step_seconds: float, parameters: float, ranks: int, reliability: Reliability
) -> JobPlan:
    """The job of a configuration.

    Args:
        config: the run.
        step_seconds: of one step.
        parameters: of the whole model.
        ranks: GPUs.
        reliability: of the cluster.
    """
    element = 2 if config.train.precision == "bf16" else 4
    size = parameters * (element + (12 if element == 2 else 8))
    write = size / (reliability.disk * 1e9)
    between = reliability.mtbf * 3600 / ranks
    interval = max(1, round(best_interval(write, between) / step_seconds))
    return JobPlan(
        steps=config.train.steps,
        tokens=config.train.steps * config.train.global_batch_size * config.data.sequence_length,
        step_seconds=step_seconds,
        ranks=ranks,
        checkpoint_bytes=size,
        write_seconds=write,
        failure_seconds=between,
        interval=min(interval, config.train.steps),
        restart=reliability.restart,
    )
