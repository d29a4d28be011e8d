"""The examples' scripts under a real SLURM of two nodes: to the end, through its warning, and through a lost node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import BATCH, EXAMPLE, LAYOUT, LENGTH, ROOT, STEPS, Cluster, Submit, losses, tail

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")


def over(job: dict[str, str]) -> bool:
    return job["JobState"] in OVER


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster, submit: Submit, variables: dict[str, str]) -> Path:
    """Every step of an example, run to its end; the folder of the run."""
    run = Path(variables["RUN"])
    jobs = submit("all")
    assert list(jobs) == ["preprocess", "pack", "chats", "convert", "extend", "sft", "export", "evaluate"]
    for step, number in jobs.items():
        log = run / "logs" / (f"preprocess_{number}_0.log" if step == "preprocess" else f"{step}_{number}.log")
        job = cluster.wait(number, over, 240, log)
        assert job["JobState"] == "COMPLETED", (step, tail(log))
    return run


@pytest.fixture
def beside(pipeline: Path, tmp_path: Path) -> Path:
    """The folder of another run on the same data."""
    for name in ("packed", "megatron"):
        (tmp_path / name).symlink_to(pipeline / name)
    return tmp_path


def test_every_step_to_a_finished_job(pipeline):
    assert sorted(losses(pipeline / "extend")) == list(range(1, STEPS + 1))
    assert sorted(losses(pipeline / "sft")) == [1, 2, 3, 4]
    exported = json.loads((pipeline / "extended/config.json").read_text())
    assert exported["max_position_embeddings"] == LENGTH
    results = json.loads((pipeline / "report/results.json").read_text())
    assert results["target_length"] == LENGTH
    logs = "".join(path.read_text() for path in (pipeline / "logs").iterdir())
    assert "examined 2 processes on 2 nodes (n1, n2)" in logs
    assert "== sft is finished" in logs
