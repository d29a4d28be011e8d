"""train.deterministic: what it asks for, that no operator of a step refuses it, and on a GPU the bits themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_ultralong.engine.determinism import ENVIRONMENT
from tests.training.jobs import Job, rows_of

Begin = Callable[..., Job]


def test_what_is_asked_for() -> None:
    code = """
import json, os, torch
from megatron_ultralong.engine import determinism
os.environ["NCCL_ALGO"] = "Ring"
determinism.require()
assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
print(json.dumps({name: os.environ[name] for name in determinism.ENVIRONMENT}))
"""
    clean = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    assert json.loads(done.stdout) == ENVIRONMENT | {"NCCL_ALGO": "Ring"}


def numbers(path: Path) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in rows_of(path)]


@pytest.mark.gloo
def test_a_cpu_computes_the_same_and_no_operator_refuses(begin: Begin, tmp_path: Path) -> None:
    words = ["--parallel.context", "2", "--train.precision", "bf16", "--parallel.recompute", "selective"]
    for name in ("true", "false"):
        lines = str(tmp_path / name)
        job = begin(2, *words, "--train.deterministic", name, "--log.metrics", lines)
        assert job.statuses() == [0, 0], job.log()
    assert numbers(tmp_path / "true") == numbers(tmp_path / "false") and len(numbers(tmp_path / "true")) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("words", [[], ["--data.document_mask", "true"]], ids=["whole", "documents"])
def test_a_gpu_repeats_its_bits_and_resumes_to_them(begin: Begin, tmp_path: Path, words: list[str]) -> None:
    words = [*words, "--train.deterministic", "true", "--train.precision", "bf16", "--train.steps", "6"]
    words += ["--parallel.device", "gpu", "--checkpoint.interval", "3"]
    for name in ("first", "second"):
        assert begin(1, *words, "--checkpoint.save", str(tmp_path / name)).statuses() == [0]
    (tmp_path / "second/step_000006").rename(tmp_path / "gone")
    assert begin(1, *words, "--checkpoint.save", str(tmp_path / "second")).statuses() == [0]
    assert numbers(tmp_path / "first/metrics.jsonl") == numbers(tmp_path / "second/metrics.jsonl")
