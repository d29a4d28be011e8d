"""Losses that are not finite, made by real overflow: skipped without a trace, named, and not for ever."""

from __future__ import annotations

import collections
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.data.reading.blend import BlendedDataset
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.training.ahead import Ahead
from megatron_ultralong.training.anomalies import Anomalies, spike
from megatron_ultralong.training.step import StepResult
from tests.training.jobs import Job, rows_of

Begin = Callable[..., Job]
BATCH = 4


@pytest.fixture(scope="module")
def poisoned(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """A checkpoint with one infinite row of the embedding, the one sample of the first 20 it spoils, its place."""
    data = PackedDataset(workspace / "packed")
    blend = BlendedDataset([data], [1.0], 1234)
    tokens = [set(blend.read(sample).tokens.tolist()) for sample in range(5 * BATCH)]
    counts = collections.Counter(token for sample in tokens for token in sample)
    victim = next(
        sample for sample in range(BATCH + 1, 3 * BATCH) if any(counts[token] == 1 for token in tokens[sample])
    )
    token = min(token for token in tokens[victim] if counts[token] == 1)
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "hf").mkdir()
    for file in workspace.glob("hf/*token*"):
        shutil.copy(file, folder / "hf")
    model = transformers.LlamaForCausalLM.from_pretrained(workspace / "hf")
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("inf")
    model.save_pretrained(folder / "hf")
    convert_hf_to_megatron(hf=folder / "hf", output=folder / "megatron")
    return folder / "megatron", victim, blend.locate(victim)[1]


@pytest.mark.gloo
@pytest.mark.parametrize("layout", ["data", "context", "tensor"])
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_sample(
    begin: Begin, poisoned: tuple[Path, int, int], workspace: Path, tmp_path: Path, layout: str
) -> None:
    load, victim, place = poisoned
    save, bad = tmp_path / "run", victim // BATCH  # steps before the bad one
    words = ["--checkpoint.load", str(load), "--checkpoint.save", str(save), "--checkpoint.interval", "1"]
    words += ["--optimizer.warmup_steps", str(bad + 1)] + ([] if layout == "data" else [f"--parallel.{layout}", "2"])
    job = begin(2, *words, "--train.steps", str(bad + 1))  # a last step is saved also where it was skipped
    assert job.statuses() == [0, 0], job.log()
    again = begin(2, *words, "--train.steps", "4")
    assert again.statuses() == [0, 0], again.log()
    rows = rows_of(save / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [step == bad for step in range(4)]
    assert rows[bad]["loss"] is None and all(row["loss"] > 0 for row in rows if not row["skipped"])
    sample = f"sample {victim} ({workspace / 'packed'}, {place})"
    said = f"step {bad + 1}: the loss is nan and the gradient norm nan, by {sample}; the step is skipped"
    assert said in job.log()
    before, after = save / f"step_{bad:06d}", save / f"step_{bad + 1:06d}"
    for file in before.glob("*.distcp"):
        assert file.read_bytes() == (after / file.name).read_bytes()
    schedules = [torch.load(folder / "common.pt", weights_only=False)["scheduler"] for folder in (before, after)]
    assert schedules[0] == schedules[1] and schedules[0]["num_steps"] == bad
    rates = [row["learning_rate"] for row in rows]
    assert rates[bad] == rates[bad + 1] > rates[bad - 1]


@pytest.mark.gloo
def test_too_many_in_a_row_end_the_run_with_the_state_before(begin: Begin, tmp_path: Path) -> None:
    """A learning rate that overflows bf16: from the second step on there is nothing but infinities."""
    save = tmp_path / "run"
    words = ["--train.precision", "bf16", "--optimizer.learning_rate", "1e30", "--optimizer.clip_grad", "0"]
    words += ["--checkpoint.interval", "1", "--checkpoint.keep_last", "1"]  # what is due meanwhile must not push it out
    job = begin(2, *words, "--checkpoint.save", str(save), "--train.steps", "100", "--train.max_skipped", "2")
    assert job.statuses() == [2, 2], job.log()
    rows = rows_of(save / "metrics.jsonl")
    good = [row["step"] for row in rows if not row["skipped"]]
    assert len(rows) == len(good) + 3 and good == list(range(1, len(good) + 1))
    assert job.log().count("the step is skipped") == 3
    said = "3 times in a row, which train.max_skipped 2 does not allow; "
    assert f"{said}{save / f'step_{len(good):06d}'} holds the state before" in job.log()
    assert [folder.name for folder in save.glob("step_*")] == [f"step_{len(good):06d}"]
    assert "Traceback" not in job.log() + job.log(1)


def test_a_spike_stands_out_of_what_losses_do_anyway() -> None:
    noisy = collections.deque([2.0 + 0.1 * (-1) ** step for step in range(64)], maxlen=64)
    assert spike(noisy, 2.1) < 1 < spike(noisy, 2.4) < 8 < spike(noisy, 4.0)
    flat = collections.deque([2.0] * 64, maxlen=64)
    assert spike(flat, 2.05) < 8 < spike(flat, 2.1)
    once_wild = collections.deque([*list(flat)[:-3], 50.0, 60.0, 70.0], maxlen=64)
    assert spike(once_wild, 2.1) == spike(flat, 2.1)
    assert spike(noisy, 1.0) < 0
    assert spike(collections.deque([2.0] * 15), 100.0) == 0.0


def test_a_step_of_another_source_is_no_spike() -> None:
    """Short documents' losses lie higher; each step is judged beside those of the same sources."""
    train = types.SimpleNamespace(max_skipped=3, global_batch_size=1)
    log, data = types.SimpleNamespace(spike=8.0), types.SimpleNamespace(locate=lambda k: (0, k))
    sources = [types.SimpleNamespace(index="a")]
    config = types.SimpleNamespace(log=log, train=train, data=types.SimpleNamespace(sources=sources))
    run: Any = types.SimpleNamespace(config=config, data=data, ahead=Ahead(), samples_before=lambda step: step)
    anomalies = Anomalies(run, None)  # type: ignore[arg-type]

    def judged(step: int, loss: float, *by_source: tuple[float, int]) -> bool:
        return anomalies.judge(step, StepResult(loss, 1, 1, 1.0, 1e-5, by_source=by_source))

    for step in range(100):
        short = step % 4 == 3
        loss = (3.0 if short else 2.0) + 0.01 * (step % 3)
        assert not judged(step, loss, *(((0.0, 0), (loss, 9)) if short else ((loss, 9), (0.0, 0))))
    assert judged(100, 3.0, (3.0, 9), (0.0, 0)) and not judged(101, 3.0, (0.0, 0), (3.0, 9))


@pytest.mark.gloo
def test_a_spike_is_marked_in_the_metrics_and_named(begin: Begin, tmp_path: Path) -> None:
    """At a learning rate of nothing losses differ by their data alone, some by more than one deviation."""
    words = ["--train.steps", "32", "--checkpoint.save", str(tmp_path / "run"), "--optimizer.learning_rate", "1e-9"]
    job = begin(1, *words, "--log.spike", "1")
    assert job.statuses() == [0], job.log()
    rows = rows_of(tmp_path / "run" / "metrics.jsonl")
    marked = [row["step"] for row in rows if row["spike"]]
    losses = [row["loss"] for row in rows]
    assert marked == [n + 1 for n in range(32) if spike(collections.deque(losses[:n]), losses[n]) >= 1]
    assert 0 < len(marked) < 16 and min(marked) > 16
    assert all(f"step {step}: the loss" in job.log() for step in marked)
    assert job.log().count("is a spike") == len(marked)
