"""A rank that dies, stops or fails alone: the others end in time and say which, at which step, in which collective."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.training.jobs import Job, rows_of

Begin = Callable[..., Job]
LONG = ["--train.steps", "100000"]
LAYOUTS = {
    "context": ["--parallel.context", "2"],
    "data": ["--parallel.distributed_optimizer", "true"],
    "pipeline": ["--parallel.pipeline", "2"],
}


def running(begin: Begin, tmp_path: Path, *words: str) -> Job:
    job = begin(2, *LONG, *words, "--log.metrics", str(tmp_path / "metrics.jsonl"))
    job.until(lambda: len(rows_of(tmp_path / "metrics.jsonl")) >= 3)
    return job


def error(job: Job, rank: int) -> str:
    (line,) = [line for line in job.log(rank).splitlines() if line.startswith("error: ")]
    assert "Traceback" not in job.log(rank), job.log(rank)
    return line


@pytest.mark.gloo
@pytest.mark.parametrize(
    "layout", ["context", *(pytest.param(x, marks=pytest.mark.slow) for x in ("data", "pipeline"))]
)
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_is_named(begin: Begin, tmp_path: Path, victim: int, layout: str) -> None:
    job = running(begin, tmp_path, *LAYOUTS[layout])
    job.signal(victim, signal.SIGKILL)
    started = time.monotonic()
    statuses = job.statuses(60)
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 1, job.log(1 - victim)
    assert time.monotonic() - started < 45
    said = error(job, 1 - victim)
    if victim == 1:
        assert re.search(r"rank 1 stopped answering: .* last seen at (step \d+|the beginning), in ", said), said
    else:  # it kept the store, too
        assert "the store of the job is gone" in said
    assert re.search(rf"rank {1 - victim} waited at step \d+, in [\w ]+ of \w+\.py:\d+ \w+", said), said


@pytest.mark.gloo
def test_a_stopped_rank_is_named_within_the_timeout(begin: Begin, tmp_path: Path) -> None:
    job = running(begin, tmp_path, "--parallel.context", "2", "--parallel.timeout", "20")
    job.signal(1, signal.SIGSTOP)
    started = time.monotonic()
    job.ranks[0].join(60)
    assert job.ranks[0].exitcode == 1, job.log()
    assert time.monotonic() - started < 20
    assert re.search(r"rank 1 stopped answering: .* rank 0 waited at step \d+, in [\w ]+ of \w+\.py:\d+", error(job, 0))


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_torchrun_passes_the_message_on(workspace: Path, tmp_path: Path, number: signal.Signals) -> None:
    """It kills the others half a minute after one has died; that is long enough for them to say why they end."""
    words = ["--nproc-per-node", "4", "-m", "megatron_ultralong.train", "--config", str(workspace / "run.toml"), *LONG]
    words += ["--parallel.context", "2", "--parallel.tensor", "2", "--parallel.timeout", "30"]
    words += ["--log.metrics", str(tmp_path / "metrics.jsonl")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as launcher:
        while len(rows_of(tmp_path / "metrics.jsonl")) < 2:
            time.sleep(0.05)
        ranks = [rank for rank in psutil.Process(launcher.pid).children() if rank.environ().get("RANK") == "2"]
        ranks[0].send_signal(number)
        _, shown = launcher.communicate(timeout=150)
    assert launcher.returncode == 1
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert re.search(r"rank 2 stopped answering: .*; rank 0 waited at step \d+, in ", line), shown[-3000:]
