"""Adam's state on the host over several processes and over checkpoints: the bits of a run that has it on the device."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import Train
from tests.training.test_resume import tensors

SPREAD = ["--parallel.distributed_optimizer", "true"]
BF16, GRADIENTS = ["--train.precision", "bf16"], ["--train.grad_reduce_in_fp32", "false"]
STEPS = ["--train.steps", "4", "--optimizer.clip_grad", "0.2"]


def numbers(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in rows]


def assert_equal(one: Path, two: Path) -> None:
    """Two checkpoints, weights and the optimizer's state."""
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.gloo
@pytest.mark.parametrize(
    "words",
    [
        [*SPREAD, *BF16, *GRADIENTS],
        pytest.param(["--parallel.tensor", "2", "--parallel.sequence_parallel", "true"], marks=pytest.mark.slow),
        pytest.param(["--parallel.context", "2", *BF16], marks=pytest.mark.slow),
        pytest.param([*SPREAD, "--parallel.pipeline", "2"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_checkpoints_cross_between_host_and_device(train: Train, tmp_path: Path, words: list[str]) -> None:
    """All of it, half or none on the host; saved in the background; each resumed from the other's second step."""
    words = [*STEPS, *words, "--checkpoint.interval", "2", "--checkpoint.async_save", "true"]

    def run(name: str, share: str) -> list[tuple[float, float]]:
        return numbers(
            train(2, *words, "--checkpoint.save", str(tmp_path / name), "--optimizer.offload_fraction", share)
        )

    wanted = run("device", "0")
    assert run("host", "1") == wanted and wanted[0][1] > 0.2
    for step in ("step_000002", "step_000004"):
        assert_equal(tmp_path / "host" / step, tmp_path / "device" / step)
    for source, name, share in (("device", "to_host", "0.5"), ("host", "to_device", "0")):
        shutil.copytree(tmp_path / source / "step_000002", tmp_path / name / "step_000002")
        assert run(name, share) == wanted[2:]
        assert_equal(tmp_path / name / "step_000004", tmp_path / "device/step_000004")


@pytest.mark.gloo
@pytest.mark.slow
def test_tensor_parallel_ranks_step_on_their_hosts(train: Train) -> None:
    words = [*STEPS, "--parallel.tensor", "2", "--parallel.sequence_parallel", "true"]
    wanted = numbers(train(2, *words))
    assert numbers(train(2, *words, "--optimizer.offload_fraction", "0.5")) == wanted and len(wanted) == 4


@pytest.mark.slow
@pytest.mark.gloo
@pytest.mark.parametrize("after", [["--parallel.tensor", "2"], [*SPREAD, "--parallel.context", "2"]], ids=" ".join)
def test_the_layout_may_change(train: Train, tmp_path: Path, after: list[str]) -> None:
    """As rounding lets another layout's losses be."""
    host = ["--optimizer.offload_fraction", "1"]
    words = [*STEPS, *host, "--checkpoint.save", str(tmp_path / "run")]
    whole = train(2, *STEPS)
    train(2, *words, *SPREAD, "--checkpoint.interval", "2")
    shutil.rmtree(tmp_path / "run/step_000004")
    resumed = train(2, *words, *after)
    for row, wanted in zip(resumed, whole[2:], strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)
