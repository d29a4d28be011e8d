"""Exports in Hugging Face format while a run goes on: real runs, real processes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from tests.convert.test_round_trip import assert_same, weights
from tests.training.conftest import Train
from tests.training.jobs import Job


@pytest.mark.gloo
def test_a_run_exports_what_the_tool_would(train: Train, tmp_path: Path) -> None:
    save = tmp_path / "run"
    words = ["--checkpoint.save", str(save), "--checkpoint.interval", "1", "--checkpoint.export_interval", "2"]
    rows = train(2, *words, "--train.steps", "4", "--parallel.tensor", "2", "--checkpoint.keep_last", "1")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert sorted(path.name for path in (save / "hf").iterdir()) == ["step_000002", "step_000004"]
    convert_megatron_to_hf(load=save / "step_000004", output=tmp_path / "twin")
    assert_same(weights(tmp_path / "twin"), weights(save / "hf" / "step_000004"))
    config = json.loads((save / "hf" / "step_000002" / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    before, after = (load_file(save / "hf" / f"step_{n:06d}" / "model.safetensors") for n in (2, 4))
    assert any(not before[name].equal(after[name]) for name in before)


def test_a_failing_export_stops_nothing(launch: Callable[..., Any], workspace: Path, tmp_path: Path) -> None:
    save = tmp_path / "run"
    save.mkdir()
    (save / "hf").write_text("in the way")
    words = ["--checkpoint.save", str(save), "--checkpoint.interval", "1", "--checkpoint.export_interval", "1"]
    done = launch(1, *words, "--train.steps", "2")
    assert done.returncode == 0, done.stderr
    assert f"the export of {save / 'step_000001'} failed" in done.stderr
    assert (save / "step_000002").is_dir()


@pytest.mark.gloo
def test_training_that_changes_nothing_returns_the_source(train: Train, workspace: Path, tmp_path: Path) -> None:
    """A learning rate of 0 through megatron-core's optimizer, TP 2 x PP 2: saved, exported, bit for bit the source."""
    save = tmp_path / "run"
    words = ["--optimizer.learning_rate", "0", "--parallel.tensor", "2", "--parallel.pipeline", "2"]
    train(4, *words, "--train.steps", "1", "--checkpoint.save", str(save), "--checkpoint.export_interval", "1")
    assert_same(weights(workspace / "hf"), weights(save / "hf" / "step_000001"))
    shutil.rmtree(save)


def slow_last_export(rank: int) -> None:
    """Have the wait for the last exports take 17 seconds on rank 0, longer than a rank may be silent or waited for."""
    from megatron_ultralong.training.exporting import Exporter

    finish = Exporter.finish

    def slow(self: Exporter, stopped: Callable[[], bool]) -> None:
        end = time.monotonic() + 17 * (rank == 0)
        while time.monotonic() < end and not stopped():
            time.sleep(0.1)
        finish(self, stopped)

    Exporter.finish = slow


EXPORTED = ["--checkpoint.export_interval", "2", "--train.steps", "2", "--parallel.timeout", "14"]


@pytest.mark.gloo
def test_no_rank_leaves_before_the_last_export_is_there(begin: Callable[..., Job], tmp_path: Path) -> None:
    """srun ends those that run on a minute after the first has left."""
    save = tmp_path / "run"
    job = begin(2, *EXPORTED, "--checkpoint.save", str(save), change=slow_last_export)
    job.until(lambda: (save / "hf/step_000002").exists())  # fails if a rank ends first
    assert job.statuses() == [0, 0], job.log()
    assert f"exported {save / 'hf/step_000002'}" in job.log() and "error" not in job.log() + job.log(1)


@pytest.mark.gloo
def test_a_warning_ends_the_wait_for_exports(begin: Callable[..., Job], tmp_path: Path) -> None:
    save = tmp_path / "run"
    job = begin(2, *EXPORTED, "--checkpoint.save", str(save), change=slow_last_export)
    job.until(lambda: (save / "step_000002").exists())
    for rank in (0, 1):
        job.signal(rank, signal.SIGUSR1)
    started = time.monotonic()
    assert job.statuses() == [0, 0], job.log()
    assert time.monotonic() - started < 14
