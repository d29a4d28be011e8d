"""A run that is told to leave saves and leaves after the same step on every rank, and goes on bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ultralong.engine import groups
from megatron_ultralong.errors import UserError
from megatron_ultralong.training.stopping import StopRequests
from tests.training.jobs import rows_of

LONG = ["--train.steps", "100000"]


def losses(path: Path, steps: int) -> list[tuple[float, float]]:
    rows = rows_of(path)[:steps]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    return [(row["loss"], row["grad_norm"]) for row in rows]


@pytest.mark.gloo
def test_a_signal_to_one_rank_stops_every_rank_with_a_checkpoint_and_the_code(begin, tmp_path: Path) -> None:
    save = tmp_path / "run"
    words = [*LONG, "--parallel.context", "2", "--checkpoint.save", str(save), "--train.requeue_code", "85"]
    job = begin(2, *words)
    job.until(lambda: len(rows_of(save / "metrics.jsonl")) >= 3)
    job.signal(1, signal.SIGUSR1)
    assert job.statuses() == [85, 85]
    steps = len(rows_of(save / "metrics.jsonl"))
    assert f"stopped by SIGUSR1 after step {steps} of 100000; the same command goes on from there" in job.log()
    assert [folder.name for folder in save.glob("step_*")] == [f"step_{steps:06d}"]
    again = begin(2, *words, "--train.steps", str(steps + 2))
    assert again.statuses() == [0, 0]
    whole = begin(2, *words, "--checkpoint.save", str(tmp_path / "whole"), "--train.steps", str(steps + 2))
    assert whole.statuses() == [0, 0]
    path = save / "metrics.jsonl"
    assert losses(path, steps + 2) == losses(tmp_path / "whole" / "metrics.jsonl", steps + 2)


def test_a_time_limit_that_is_none_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^train\.time_limit is 'abc', no time; give HH:MM:SS or D-HH:MM:SS\.$"):
        StopRequests("abc")


def test_the_time_limit_leaves_room_for_another_step_and_another_save() -> None:
    # The limit counts from the start of this process, which may have run for a quarter of an hour before.
    with groups.single_process() as device, StopRequests("10:00:00") as requests:
        assert requests.agreed(device) == ""
        requests.took("step", 18000.0)
        requests.took("save", 9000.0)
        requests.took("step", 1.0)
        assert requests.agreed(device) == ""
        requests.took("save", 18000.0)
        assert requests.agreed(device) == "train.time_limit"


def test_the_time_limit_leaves_room_for_a_validation_where_one_is_due() -> None:
    with groups.single_process() as device, StopRequests("10:00:00") as requests:
        requests.took("validation", 36000.0)
        assert requests.agreed(device) == ""
        assert requests.agreed(device, validates=True) == "train.time_limit"


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with StopRequests() as requests, groups.single_process() as device:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.agreed(device) == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.agreed(device) == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


@pytest.mark.gloo
@pytest.mark.slow
def test_a_time_limit_ends_a_run_before_it_is_over(begin, tmp_path: Path) -> None:
    save = tmp_path / "run"
    started = time.monotonic()
    job = begin(1, *LONG, "--checkpoint.save", str(save), "--train.time_limit", "00:01:00")
    assert job.statuses() == [0]
    assert 45 < time.monotonic() - started < 61
    (step,) = (int(folder.name[5:]) for folder in save.glob("step_*"))
    assert step == len(rows_of(save / "metrics.jsonl")) > 0
    assert f"stopped by train.time_limit after step {step}" in job.log()


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_through_torchrun(workspace: Path, tmp_path: Path, name: str) -> None:
    """torchrun passes it on, waits, and says with its own status that it was stopped."""
    words = ["--nproc-per-node", "2", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
    words += ["-m", "megatron_ultralong.train", "--config", str(workspace / "run.toml"), *LONG]
    words += ["--checkpoint.save", str(tmp_path / "run")]
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as launcher:
        while len(rows_of(tmp_path / "run" / "metrics.jsonl")) < 2:
            time.sleep(0.05)
        launcher.send_signal(signal.Signals[name])
        _, shown = launcher.communicate(timeout=60)
    (step,) = (int(folder.name[5:]) for folder in (tmp_path / "run").glob("step_*"))
    assert re.search(f"stopped by {name} after step {step} of 100000", shown), shown[-3000:]


@pytest.mark.gloo
@pytest.mark.slow
def test_a_run_that_saves_nothing_says_so(begin) -> None:
    job = begin(1, *LONG)
    job.until(lambda: "step 2 of" in job.log())
    job.signal(0, signal.SIGTERM)
    assert job.statuses() == [0]
    assert "nothing was saved: no checkpoint.save" in job.log()
