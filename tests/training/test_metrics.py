"""What a run records: the same numbers in every place, FLOPs that follow from the data, a view for a terminal."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.planning.flops import ModelShape, causal_pairs, step_flops
from megatron_ultralong.training import metrics, recorder, terminal_view
from tests.training.conftest import SEQUENCE_LENGTH, Train

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.gloo
def test_every_place_gets_the_same_numbers(
    launch: Launch, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wandb = [] if importlib.util.find_spec("wandb") is None else ["--log.wandb", "ultralong"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    save = tmp_path / "run"
    done = launch(2, "--checkpoint.save", str(save), *wandb, "--log.profile", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["samples"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
    shape = ModelShape.from_hf(json.loads((workspace / "hf" / "config.json").read_text()))
    for row in rows:
        flops = step_flops(shape, 4 * SEQUENCE_LENGTH, row["tokens"], causal_pairs([SEQUENCE_LENGTH] * 4))
        assert row["tflops_per_rank"] * row["seconds"] * 2 * 1e12 == pytest.approx(flops)
        assert row["tokens_per_second"] == 2 * row["tokens_per_second_per_rank"]
        assert row["mfu"] is None
        assert 0.1 < row["memory_gib"] < 4
    events = EventAccumulator(str(save / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
    assert "mfu" not in events.Tags()["scalars"]
    assert bool(wandb) == bool(list(tmp_path.glob("wandb/offline-run-*-run/*.wandb")))
    for rank in (0, 1):
        with gzip.open(save / "trace" / f"rank_{rank}.json.gz") as stream:
            trace = json.load(stream)
        assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    shown = r"step 3 of 3: loss .* tokens/s \([\d,]+ a rank\), .* TFLOPS a rank, .* GiB, 12 samples read, 0 s left"
    assert re.search(shown, done.stderr), done.stderr


@pytest.mark.gloo
def test_masked_documents_cost_their_own_pairs(train: Train, workspace: Path) -> None:
    rows = train(1, "--data.document_mask", "true", "--train.steps", "1", "--train.global_batch_size", "2")
    data = PackedDataset(workspace / "packed", document_mask=True)
    shape = ModelShape.from_hf(json.loads((workspace / "hf" / "config.json").read_text()))
    possible = [causal_pairs(np.diff(data.read(sample).cu_seqlens).tolist()) for sample in range(len(data))]
    flops = rows[0]["tflops_per_rank"] * rows[0]["seconds"] * 1e12
    pairs = (flops - step_flops(shape, 2 * SEQUENCE_LENGTH, rows[0]["tokens"], 0)) / step_flops(shape, 0, 0, 1)
    sums = {a + b for a in possible for b in possible}
    assert round(pairs) in sums
    assert pairs < 2 * causal_pairs([SEQUENCE_LENGTH])


def on_a_terminal(workspace: Path, *words: str) -> tuple[int, str]:
    """The tiny model's run with a terminal for stderr: exit status and all that was shown."""
    command = [sys.executable, "-m", "megatron_ultralong.train", "--config", str(workspace / "run.toml"), *words]
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 4096)
        except OSError:  # the last process that held the terminal is gone
            break
        if not part:
            break
        shown += part
    os.close(controller)
    return process.wait(), shown.decode()


def test_a_terminal_gets_a_live_table(workspace: Path) -> None:
    status, shown = on_a_terminal(workspace)
    assert status == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "3 of 3" in text and "0 s" in text and "gradient norm" in text and "TFLOPS" in text
    assert "megatron-core runs on the CPU" in text


def test_a_run_that_fails_gives_the_terminal_back(workspace: Path) -> None:
    """Losses that overflow: the cursor that the table hid is shown again, and the error stands below it."""
    words = ["--train.precision", "bf16", "--optimizer.learning_rate", "1e30", "--optimizer.clip_grad", "0"]
    status, shown = on_a_terminal(workspace, *words, "--train.steps", "9", "--train.max_skipped", "0")
    assert status == 2
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert "error: step" in shown[shown.index("\x1b[?25h") :]


FOUND = metrics.ValidationMetrics(
    4,
    {"loss/h": 2.5, "loss/h/0-16": 2.75, "perplexity/h": 12.18, "perplexity/h/0-16": 15.6, "needles/64": 0.25},
    {"h": 10, "h/0-16": 4, "needles/64": 20},
    3.0,
)


def test_a_validation_is_a_line_of_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    terminal_view.PlainView(1, 8, 10).validated(FOUND)
    said = "loss of h 2.5000 (perplexity 12.18), at 0-16 2.7500, 25 % of needles at 64; 3 s"
    assert caplog.messages == [f"validation after step 4: {said}"]


def test_a_table_keeps_what_was_validated(capsys: pytest.CaptureFixture[str]) -> None:
    every = dataclasses.fields(metrics.StepMetrics)
    fields = [field for field in every if field.default_factory is dataclasses.MISSING]
    view = terminal_view.LiveView(1, 8, 10)
    view.validated(FOUND)
    view.record(metrics.StepMetrics(**{field.name: 1 for field in fields}))  # type: ignore[arg-type]
    view.close()
    shown = capsys.readouterr().err
    assert re.search(r"loss/h +2\.5000 +loss/h/0-16 +2\.7500", shown) and re.search(r"needles/64 +25 %", shown), shown


def test_lines_of_validations_that_will_be_repeated_are_dropped(tmp_path: Path) -> None:
    """A run that resumes after step 4 without knowing of the validation there."""
    path = tmp_path / "metrics.jsonl"
    rows = [(0, {"validation": {}}), *((step, {"loss": 1.0}) for step in (1, 2, 3, 4)), (4, {"validation": {}})]
    for validated, kept in ((4, [0, 1, 2, 3, 4, 4]), (0, [0, 1, 2, 3, 4]), (-1, [1, 2, 3, 4])):
        path.write_text("".join(json.dumps({"step": step} | row) + "\n" for step, row in [*rows, (5, {"loss": 1.0})]))
        recorder._JsonLines(path, 5, validated)
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept


def test_a_full_disk_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = recorder._JsonLines(tmp_path / "metrics.jsonl", 1)
    fields = dict.fromkeys((field.name for field in dataclasses.fields(metrics.StepMetrics)), 1)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    for _ in range(2):
        sink.record(metrics.StepMetrics(**fields))  # type: ignore[arg-type]
    (said,) = caplog.messages
    assert said.endswith("metrics.jsonl: cannot be written (No space left on device); training goes on without.")


def test_each_sources_newest_loss_is_shown_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a step that had labels of one source alone the other's loss before it; null in JSON where it is not finite."""
    fields = dict.fromkeys((field.name for field in dataclasses.fields(metrics.StepMetrics)), 1) | {"mfu": None}
    alone = {"loss_by_source": {}, "tokens_by_source": {}, "samples_by_source": {}}
    losses: list[dict[str, float]] = [{"long": 2.0}, {"short": math.inf}, {"short": 3.5}]
    steps = [metrics.StepMetrics(**fields | alone | {"loss_by_source": loss}) for loss in losses]  # type: ignore[arg-type]
    shown, lines = terminal_view.PlainView(1, 1, 1), recorder._JsonLines(tmp_path / "metrics.jsonl", 1)
    with caplog.at_level("INFO"):
        for step in steps:
            shown.record(step)
            lines.record(step)
    assert "loss 1.0000 (newest of each source: long 2.0000, short 3.5000), gradient" in caplog.messages[-1]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss_by_source"] for row in rows] == [{"long": 2.0}, {"short": None}, {"short": 3.5}]
    assert "tokens_by_source" not in rows[0]
    assert steps[2].flat()["loss_by_source/short"] == 3.5 and "loss_by_source" not in steps[2].flat()
    table = terminal_view.LiveView(1, 1, 1)
    try:
        drawn = io.StringIO()
        for step in steps:
            Console(file=drawn, width=100).print(table._table(step))
    finally:
        table.close()
    rows = [line.split() for line in drawn.getvalue().splitlines()]
    assert rows[-2:] == [["of", "long", "2.0000"], ["of", "short", "3.5000"]]
