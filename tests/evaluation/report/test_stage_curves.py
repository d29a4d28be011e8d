"""metrics.jsonl read as curves, and drawn as a picture by the command that users have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.report.curve_picture import _panels, curves_png
from megatron_ultralong.evaluation.report.stage_curves import read_curves

ROOT = Path(__file__).parents[3]
ROWS = [
    {"step": 0, "validation": {"loss/a": 3.0, "loss/a/0-16": 3.5, "loss/a/16-2048": 2.5, "needles/64": 0.0}},
    {"step": 1, "loss": 2.0, "grad_norm": 1.0},
    {"step": 2, "loss": None, "grad_norm": None},
    {"step": 3, "loss": 1.0, "grad_norm": 1.0},
    {"step": 3, "validation": {"loss/a": None, "loss/a/0-16": 3.25, "loss/a/16-2048": 2.0, "needles/64": 1.0}},
]


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_steps_and_validations_are_told_apart_and_what_is_not_finite_is_left_out(metrics: Path) -> None:
    stage = read_curves([f"x={metrics}"])["x"]
    assert stage.of_steps("loss") == [(1, 2.0), (3, 1.0)]
    assert stage.of_validations("loss")["a"] == [(0, 3.0)]
    assert stage.of_validations("needles") == {"64": [(0, 0.0), (3, 1.0)]}
    panels = {label: [(name, series) for name, _, _, series in lines] for label, lines in _panels(stage)}
    assert panels == {
        "loss, nats a token": [("training", [(1, 2.0), (3, 1.0)]), ("held out: a", [(0, 3.0)])],
        "held-out loss by tokens of context": [
            ("0 to 16 tokens of context", [(0, 3.5), (3, 3.25)]),
            ("16 to 2,048 tokens of context", [(0, 2.5), (3, 2.0)]),
        ],
        "share of needles found": [("64 tokens", [(0, 0.0), (3, 1.0)])],
    }
    assert curves_png({"x": stage}) == curves_png({"x": stage})


def test_the_tool_draws_and_names_what_it_cannot_read(metrics: Path, tmp_path: Path) -> None:
    def tool(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "plot_training.py"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = tool(f"x={metrics}", f"y={metrics}", "--output", str(tmp_path / "out.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    metrics.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: step, loss or grad_norm is missing"):
        read_curves([f"x={metrics}"])
