"""On 2 to 8 GPUs, over NCCL: every layout computes what one process does, and a killed rank ends the job in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Train
from tests.training.jobs import Job, rows_of
from tests.training.test_layouts import CURVES, DOCUMENTS, LAYOUTS

GPU = ["--parallel.device", "gpu"]
EIGHT: dict[str, tuple[int, list[str]]] = {
    "TP 2 x CP 2 x DP 2, distributed optimizer": (
        8,
        [
            *["--parallel.tensor", "2", "--parallel.sequence_parallel", "true", "--parallel.context", "2"],
            *["--parallel.distributed_optimizer", "true"],
        ],
    ),
    "TP 2 x CP 2 x PP 2": (8, ["--parallel.tensor", "2", "--parallel.context", "2", "--parallel.pipeline", "2"]),
}
CASES = {name: case for name, case in {**LAYOUTS, **CURVES, **EIGHT}.items() if case[0] > 1}


@pytest.fixture(scope="module")
def known() -> dict[str, list[dict[str, Any]]]:
    """Rows of one process, by what it was told."""
    return {}


@pytest.mark.parametrize("documents", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.gpus(n)) for name, (n, _) in CASES.items()])
def test_equals_one_process(
    train: Train, known: dict[str, list[dict[str, Any]]], name: str, precision: str, documents: bool
) -> None:
    """From the same weights; in bf16 to a few roundings of it, for sums are in another order."""
    words = [*GPU, "--train.precision", precision, *(DOCUMENTS if documents else [])]
    key = " ".join(words)
    if key not in known:
        known[key] = train(1, *words)
    processes, layout = CASES[name]
    rows = train(processes, *layout, *words)
    loss, norm = {"fp32": (1e-5, 1e-5), "bf16": (2**-8, 2**-5)}[precision]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row, wanted in zip(rows, known[key], strict=True):
        assert row["tokens"] == wanted["tokens"]
        assert row["loss"] == pytest.approx(wanted["loss"], rel=loss)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=norm)


@pytest.mark.gpus(2)
@pytest.mark.parametrize("layout", ["context", "tensor", "data"])
def test_a_killed_rank_ends_the_job_within_a_minute(begin: Callable[..., Job], tmp_path: Path, layout: str) -> None:
    parallel = ["--parallel.distributed_optimizer", "true"] if layout == "data" else [f"--parallel.{layout}", "2"]
    metrics = tmp_path / "metrics.jsonl"
    job = begin(2, *GPU, *parallel, "--train.steps", "100000", "--log.metrics", str(metrics))
    job.until(lambda: len(rows_of(metrics)) >= 3, 300)
    job.signal(1, signal.SIGKILL)
    started = time.monotonic()
    statuses = job.statuses(60)
    assert time.monotonic() - started < 60
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, None), job.log()
    assert "rank 1 stopped answering" in job.log(), job.log()[-3000:]
