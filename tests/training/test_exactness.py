"""Killed at any moment and started again, a run computes what it would have computed: bit for bit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.jobs import Job, rows_of

Begin = Callable[..., Job]


def numbers(save: Path) -> list[tuple[int, float, float, float]]:
    rows = rows_of(save / "metrics.jsonl")
    return [(row["step"], row["loss"], row["grad_norm"], row["learning_rate"]) for row in rows]


def killed_and_resumed(begin: Begin, tmp_path: Path, kills: int, steps: int, words: list[str]) -> None:
    """Kill the whole job `kills` times: half of them at random, half while a checkpoint is being written."""
    words = [*words, "--train.steps", str(steps), "--checkpoint.interval", "1", "--checkpoint.keep_last", "3"]
    words += ["--optimizer.warmup_steps", "3", "--optimizer.decay", "cosine"]
    whole, save = tmp_path / "whole", tmp_path / "killed"
    assert begin(2, *words, "--checkpoint.save", str(whole)).statuses(600) == [0, 0]
    draw, where = random.Random(kills), []
    for kill in range(kills):
        job = begin(2, *words, "--checkpoint.save", str(save))
        job.until(lambda: "step " in job.log(), 300)  # noqa: B023
        if kill % 2:
            job.until(lambda: any(save.glob(".step_*.tmp")), 300)
            time.sleep(draw.uniform(0, 0.02))
        else:
            time.sleep(draw.uniform(0, 0.3))
        where.append((len(numbers(save)), len(list(save.glob(".step_*.tmp")))))
        job.kill()
        assert None not in job.statuses(1)
    job = begin(2, *words, "--checkpoint.save", str(save))
    assert job.statuses(600) == [0, 0], job.log()
    print("rows and half-written checkpoints at each kill:", where)
    assert any(half for _, half in where), "no kill fell into the writing of a checkpoint"
    assert where[-1][0] < steps, "the last kill came after the end"
    assert numbers(save) == numbers(whole) and len(numbers(save)) == steps
    assert list(save.glob(".step_*")) == []


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("precision", "background"), [("fp32", "true"), pytest.param("bf16", "false", marks=pytest.mark.slow)]
)
def test_five_kills(begin: Begin, tmp_path: Path, precision: str, background: str) -> None:
    words = ["--parallel.context", "2", "--train.precision", precision, "--checkpoint.async_save", background]
    killed_and_resumed(begin, tmp_path, 5, 40, words)


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "on_host"), [("fp32", "0"), ("bf16", "0"), ("bf16", "1")])
def test_twenty_kills(begin: Begin, tmp_path: Path, precision: str, on_host: str) -> None:
    words = ["--parallel.distributed_optimizer", "true", "--train.precision", precision]
    words += ["--optimizer.offload_fraction", on_host]
    killed_and_resumed(begin, tmp_path, 20, 200, [*words, "--checkpoint.async_save", "true"])
