"""A dry run measures a real step and keeps nothing; its parts are what they must be."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.engine import cpu_products
from megatron_ultralong.training.measured_memory import Storages
from tests.training.jobs import Job

Launch = Callable[..., subprocess.CompletedProcess[str]]


PARTS = ["weights", "gradients", "optimizer", "buffers", "activations", "attention", "loss", "peak", "total"]


def parts(launch: Launch, *overrides: str) -> dict[str, float]:
    done = launch(2, "--dry-run", *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"one step: [\d.]+ s, [\d,]+ tokens/s; 3 steps take", done.stderr)
    return {name: found for name, found, _ in rows_of(done.stderr)}


def rows_of(log: str) -> list[tuple[str, float, float]]:
    """Each part, MiB measured and predicted."""
    return [(name, float(a), float(b)) for name, a, b in re.findall(r"^  (\w+) +([\d.]+) +([\d.]+)$", log, re.M)]


@pytest.mark.gloo
def test_parts_of_a_step(launch: Launch, tmp_path: Path) -> None:
    save = tmp_path / "run"
    plain = parts(launch, "--checkpoint.save", str(save), "--parallel.context", "2", "--train.precision", "bf16")
    assert not save.exists()
    assert list(plain) == PARTS
    assert plain["gradients"] == pytest.approx(2 * plain["weights"], abs=0.11)  # fp32 for bf16
    assert plain["optimizer"] == pytest.approx(6 * plain["weights"], abs=0.3)  # two moments and the main weights
    assert plain["peak"] >= plain["activations"] > 0
    assert plain["attention"] > 0 and plain["loss"] > 0
    full = parts(launch, "--parallel.context", "2", "--train.precision", "bf16", "--parallel.recompute", "full")
    assert full["activations"] < 0.6 * plain["activations"]


def with_bf16(rank: int) -> None:
    """As on a CPU that multiplies it: fp32 copies, where it does not, are no formula's."""
    cpu_products.has_bf16 = lambda: True  # type: ignore[assignment]


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("ranks", "length", "options"),
    [
        (1, 64, "--parallel.recompute full --parallel.mlp_chunk 16 --train.loss_chunk 8 --train.micro_batch_size 2"),
        (2, 64, "--parallel.context 2 --parallel.distributed_optimizer true"),
        (2, 64, "--parallel.pipeline 2"),
        (2, 64, "--parallel.tensor 2 --parallel.sequence_parallel true --parallel.recompute full"),
        (1, 1024, "--train.precision bf16 --parallel.recompute selective"),
        (1, 1024, "--parallel.recompute full"),
    ],
)
def test_a_run_takes_what_was_predicted(
    begin: Callable[..., Job], workspace: Path, tmp_path: Path, ranks: int, length: int, options: str
) -> None:
    """A whole run logs it once; each part within 15 %, and what the rank holds in all within 10 %."""
    write_packed_index(open_corpus(workspace / "corpus"), tmp_path / "packed", PackOptions(sequence_length=length))
    data = f"--data.sources.0.index {tmp_path / 'packed'} --data.sequence_length {length} --rope.target_length 1024"
    job = begin(ranks, *data.split(), *options.split(), change=with_bf16)
    assert job.statuses(120) == [0] * ranks, job.log()[-3000:]
    rows = rows_of(job.log())
    assert [name for name, _, _ in rows] == PARTS
    for name, found, predicted in rows:
        assert predicted == pytest.approx(found, rel=0.1 if name == "total" else 0.15, abs=0.0005), rows


def test_storages_are_counted_while_they_live() -> None:
    before = torch.zeros(1000)
    with Storages() as meter:
        before.add_(1)
        view = before.view(10, 100)
        assert meter.live() == 0
        made = view * 2
        part = made[3:]
        assert meter.live() == 4000
        meter.mark()
        more = made + 1
        del more
        assert (meter.live(), meter.since_mark(), meter.highest()) == (4000, 4000, 8000)
        del made
        assert meter.live() == 4000  # part holds it
        del part
        assert meter.live() == 0
