"""A job's hours and losses, and the interval between checkpoints that loses least."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_ultralong.config.sections import DataConfig, ModelConfig, RunConfig, TrainConfig
from megatron_ultralong.planning.job import Reliability, best_interval, lost, plan_job

CONFIG = RunConfig(
    model=ModelConfig(hf=Path("model")),
    data=DataConfig(sources=(), sequence_length=4_194_304),
    train=TrainConfig(steps=150, global_batch_size=2),
)
PLAN = plan_job(CONFIG, 246.0, 8.03e9, 256, Reliability(mtbf=50_000, disk=10, restart=600))


def test_a_checkpoint_is_fourteen_bytes_a_parameter_in_bf16_and_twelve_in_fp32() -> None:
    assert PLAN.checkpoint_bytes == pytest.approx(14 * 8.03e9)
    assert PLAN.write_seconds == pytest.approx(11.242)
    fp32 = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, precision="fp32"))
    assert plan_job(fp32, 246.0, 8.03e9, 256, Reliability()).checkpoint_bytes == pytest.approx(12 * 8.03e9)


def test_hours_are_steps_writes_and_failures() -> None:
    assert PLAN.tokens == 150 * 2 * 4_194_304
    assert PLAN.failure_seconds == pytest.approx(50_000 * 3600 / 256)
    assert PLAN.compute_seconds == 150 * 246
    assert PLAN.hours == pytest.approx((PLAN.compute_seconds + PLAN.lost_seconds) / 3600)
    assert PLAN.gpu_hours == pytest.approx(256 * PLAN.hours)
    never = dataclasses.replace(PLAN, failure_seconds=1e30)
    assert never.lost_seconds == pytest.approx(150 / PLAN.interval * 11.242)


@pytest.mark.parametrize("write", [1.0, 60.0, 600.0])
@pytest.mark.parametrize("between", [3600.0, 86_400.0, 1e6])
def test_no_other_interval_loses_less(write: float, between: float) -> None:
    """Of any from a tenth to ten times as long, within 3 %: Daly's is an expansion for writes that take little."""
    plan = dataclasses.replace(PLAN, failure_seconds=between, restart=0.0)
    best = best_interval(write, between)
    least = min(lost(1e6, best * 1.1**power, write, plan) for power in range(-24, 25))
    assert lost(1e6, best, write, plan) <= 1.03 * least
    assert best == pytest.approx((2 * write * between) ** 0.5, rel=0.5)


def test_a_cluster_that_fails_faster_than_it_restarts_never_ends() -> None:
    assert lost(1e6, 1000.0, 100.0, dataclasses.replace(PLAN, failure_seconds=500.0)) == float("inf")
    assert best_interval(100.0, 10.0) == 10.0
