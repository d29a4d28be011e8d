"""A run that is stopped and started again goes on where it was: the same losses, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.conftest import Train


@pytest.mark.gloo
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_run_repeats_the_uninterrupted_one(train: Train, tmp_path: Path, precision: str) -> None:
    words = ["--train.precision", precision, "--optimizer.warmup_steps", "1", "--optimizer.decay", "cosine"]
    whole = train(2, *words, "--parallel.context", "2", "--train.steps", "4", "--checkpoint.save", str(tmp_path / "a"))
    saved = tmp_path / "b"
    halves = ["--parallel.context", "2", "--train.steps", "4", "--checkpoint.save", str(saved)]
    train(2, *words, *halves, "--checkpoint.interval", "2")
    (saved / "step_000004").rename(tmp_path / "gone")
    resumed = train(2, *words, *halves)
    assert [row["step"] for row in resumed] == [3, 4]
    for row, wanted in zip(resumed, whole[2:], strict=True):
        assert (row["loss"], row["grad_norm"]) == (wanted["loss"], wanted["grad_norm"])
    description = json.loads((saved / "step_000004" / "ultralong.json").read_text())
    assert description["step"] == 4
    assert (description["rope"]["kind"], description["rope"]["factor"]) == ("yarn", 2.0)
    assert description["run"]["train"]["precision"] == precision


@pytest.mark.gloo
def test_resumes_under_another_layout(train: Train, tmp_path: Path) -> None:
    words = ["--train.steps", "3", "--checkpoint.save", str(tmp_path / "run")]
    whole = train(1, "--train.steps", "3")
    train(1, *words, "--checkpoint.interval", "2")
    (tmp_path / "run" / "step_000003").rename(tmp_path / "gone")
    (resumed,) = train(2, *words, "--parallel.tensor", "2")
    assert resumed["loss"] == pytest.approx(whole[2]["loss"], rel=1e-5)
    assert resumed["grad_norm"] == pytest.approx(whole[2]["grad_norm"], rel=1e-5)


@pytest.mark.gloo
def test_a_finished_run_can_be_given_more_steps(train: Train, tmp_path: Path) -> None:
    saved = ["--checkpoint.save", str(tmp_path / "run")]
    train(1, "--train.steps", "1", *saved)
    rows = train(1, "--train.steps", "2", "--optimizer.learning_rate", "5e-4", *saved)
    assert [(row["step"], row["learning_rate"]) for row in rows] == [(2, 5e-4)]
