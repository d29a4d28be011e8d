"""What a user can get wrong in a training run: one message that names it, status 2, nothing written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Launch = Callable[..., subprocess.CompletedProcess[str]]


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_every_mistake_of_the_configuration_at_once(launch: Launch, tmp_path: Path) -> None:
    done = launch(
        1,
        *("--parallel.context", "3", "--train.global_batch_size", "5", "--train.micro_batch_size", "2"),
        *("--checkpoint.save", str(tmp_path / "run")),
    )
    refused(done, "1 processes are no multiple of", "data.sequence_length is 64, not divisible by")
    assert not (tmp_path / "run").exists()


def test_unknown_key(launch: Launch) -> None:
    refused(launch(1, "--optimizer.learning_rat", "1"), "learning_rat", "learning_rate")


def test_target_shorter_than_the_samples(launch: Launch) -> None:
    refused(launch(1, "--rope.target_length", "32"), "rope.target_length is 32, below data.sequence_length 64")


def test_missing_checkpoint(launch: Launch, tmp_path: Path) -> None:
    refused(launch(1, "--checkpoint.load", str(tmp_path / "none")), str(tmp_path / "none"))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_checkpoint(launch: Launch, workspace: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(workspace / "megatron", tmp_path / "megatron")
    victim = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    refused(launch(1, "--checkpoint.load", str(folder)), str(folder), "cannot be loaded")


def test_checkpoint_of_another_model(launch: Launch, workspace: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(workspace / "hf", tmp_path / "hf")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 2'))
    refused(launch(1, "--model.hf", str(folder)), "num_hidden_layers is 4", "is 2")


def test_a_run_goes_on_with_the_rope_that_it_began_with(launch: Launch, tmp_path: Path) -> None:
    save = ("--checkpoint.save", str(tmp_path / "run"))
    assert launch(1, "--train.steps", "1", *save).returncode == 0
    changed = launch(1, "--train.steps", "2", "--rope.form", "coded", *save)
    refused(changed, "rope.form is coded, but ", "step_000001 was trained with ", "one run has one rope")
    assert not (tmp_path / "run" / "step_000002").exists()
