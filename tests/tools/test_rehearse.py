"""tools/rehearse.py as a user runs it: one run that writes everything, and what is wrong in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ("--config", "examples/tiny_cpu/extend.toml")


def rehearse(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/rehearse.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_table_a_record_and_a_page(tmp_path: Path) -> None:
    written = ("--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    done = rehearse(*TINY, "--world-size", "4", "--rank", "1", *written, "--memory", "80", "--train.steps", "7")
    assert done.returncode == 0, done.stderr
    for text in ("Memory at the peak", "all-reduce", "Operators and matrix products", "Most is needed by rank 1 of 4"):
        assert text in done.stdout
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["worst_rank"] == 1 and record["path"] == "gpu"
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((*TINY, "--world-size", "3"), "3 processes are no multiple of parallel.tensor 1"),
        ((*TINY, "--world-size", "2", "--rank", "2"), "--rank 2 is none of 2 processes"),
        ((*TINY, "--world-size", "0"), "--world-size 0"),
        ((*TINY, "--world-size", "2", "--layers", "-1"), "--layers -1: give at least 1, 0 and 0."),
        ((*TINY, "--world-size", "2", "--memory", "plenty"), '--memory is "plenty"; give GB'),
        ((*TINY, "--world-size", "2", "--capability", "new"), "--capability is new"),
        ((*TINY, "--world-size", "2", "--train.stpes", "1"), "--train.stpes is not a field, the nearest"),
        ((*TINY, "--world-size", "2", "--model", "nowhere.json"), "nowhere.json: the model's configuration is missing"),
        (("--config", "examples/llama3.1_8b_4m/extend.toml", "--world-size", "256"), "give --model the model's"),
        (("--world-size", "2"), "--config"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(words: tuple[str, ...], wanted: str) -> None:
    done = rehearse(*words)
    assert done.returncode == 2 and wanted in done.stderr and "Traceback" not in done.stderr, done.stderr
