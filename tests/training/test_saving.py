"""Checkpoints that are written in the background, kept, damaged, killed in the middle, or find no room on the disk."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_ultralong.checkpoint.description import sizes
from megatron_ultralong.training import checkpoints
from tests.training.jobs import Job, rows_of

Begin = Callable[..., Job]


def steps(save: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in save.glob("step_*"))


@pytest.fixture(scope="module")
def saved(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two ranks with steps 1, 2 and 3. Not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    words = ["--config", str(workspace / "run.toml"), "--checkpoint.save", str(folder / "run")]
    job = Job(folder / "job", 2, [*words, "--parallel.context", "2", "--checkpoint.interval", "1"])
    assert job.statuses() == [0, 0], job.log()
    assert steps(folder / "run") == [1, 2, 3]
    return folder / "run"


@pytest.mark.gloo
def test_background_saves_hold_the_same_and_only_the_wanted_stay(begin: Begin, saved: Path, tmp_path: Path) -> None:
    save = tmp_path / "run"
    words = ["--parallel.context", "2", "--checkpoint.save", str(save), "--checkpoint.interval", "1"]
    keep = ["--checkpoint.keep_last", "2", "--checkpoint.keep_every", "4", "--checkpoint.async_save", "true"]
    job = begin(2, *words, *keep, "--train.steps", "7")
    assert job.statuses() == [0, 0], job.log()
    assert steps(save) == [4, 6, 7]
    assert sorted(path.name for path in save.iterdir() if path.name.startswith(".")) == []
    rows = rows_of(save / "metrics.jsonl")
    shutil.rmtree(save / "step_000007")
    assert begin(2, *words, *keep, "--train.steps", "7").statuses() == [0, 0]
    again = rows_of(save / "metrics.jsonl")
    assert [(row["step"], row["loss"], row["grad_norm"]) for row in again] == [
        (row["step"], row["loss"], row["grad_norm"]) for row in rows
    ]
    assert [row["loss"] for row in again[:3]] == [row["loss"] for row in rows_of(saved / "metrics.jsonl")]
    description = json.loads((save / "step_000007" / "ultralong.json").read_text())
    assert description["run"]["checkpoint"]["keep_every"] == 4
    assert description["files"] == sizes(save / "step_000007")


def damaged(saved: Path, tmp_path: Path, kind: str) -> tuple[Path, str]:
    """A copy of the run whose newest checkpoint is spoilt, and what is said of it."""
    save = shutil.copytree(saved, tmp_path / "run")
    newest = save / "step_000003"
    largest = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    if kind == "truncated":
        with largest.open("r+b") as stream:
            stream.truncate(size // 2)
        return save, f"{largest} has {size // 2} bytes and not {size}"
    if kind == "missing":
        largest.unlink()
        return save, f"{largest} is missing"
    if kind == "no metadata":
        (newest / ".metadata").unlink()
        return save, f"{newest / '.metadata'} is missing"
    if kind == "garbage json":
        (newest / "ultralong.json").write_text('{"format": 1, ')
        return save, "ultralong.json, line 1: the checkpoint's description is not JSON"
    if kind == "no json":
        (newest / "ultralong.json").unlink()
        return save, "ultralong.json: the checkpoint's description is missing"
    assert kind == "garbage"
    (newest / ".metadata").write_bytes(b"?" * (newest / ".metadata").stat().st_size)
    return save, f"{newest / '.metadata'} is damaged ("


SEEN_BY_SIZE = ["truncated", "missing", "no metadata", "garbage json", "no json"]
ALL = ["truncated", "garbage", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SEEN_BY_SIZE[1:])]


@pytest.mark.gloo
@pytest.mark.parametrize("kind", SEEN_BY_SIZE)
def test_damage_is_seen_without_loading(saved: Path, tmp_path: Path, kind: str) -> None:
    save, said = damaged(saved, tmp_path, kind)
    assert said in checkpoints.damage(save / "step_000003")
    assert checkpoints.damage(save / "step_000002") == ""
    assert next(checkpoints.sound(save)) == save / "step_000002"


@pytest.mark.gloo
@pytest.mark.parametrize("kind", ALL)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(
    begin: Begin, saved: Path, tmp_path: Path, kind: str
) -> None:
    save, said = damaged(saved, tmp_path, kind)
    job = begin(2, "--parallel.context", "2", "--checkpoint.save", str(save))
    assert job.statuses() == [0, 0], job.log()
    assert f"{save / 'step_000003'} is damaged and passed over: " in job.log() and said in job.log()
    assert f"resuming from {save / 'step_000002'}" in job.log()
    assert rows_of(save / "metrics.jsonl")[2]["loss"] == rows_of(saved / "metrics.jsonl")[2]["loss"]
    assert checkpoints.damage(save / "step_000003") == ""


@pytest.mark.gloo
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(begin: Begin, saved: Path, tmp_path: Path) -> None:
    save, _ = damaged(saved, tmp_path, "missing")
    for step in (1, 2):
        (save / f"step_{step:06d}" / "common.pt").write_bytes(b"")
    job = begin(1, "--checkpoint.save", str(save))
    assert job.statuses() == [2]
    assert f"error: {save}: no checkpoint there can be loaded (the newest is step_000003); put a good one" in job.log()
    assert job.log().count("is damaged and passed over") == 3
    assert "Traceback" not in job.log()


@pytest.mark.gloo
@pytest.mark.parametrize("lost", ["second rename", "nothing"])
def test_a_kill_between_the_renames_of_a_step_saved_again_costs_nothing(
    begin: Begin, saved: Path, tmp_path: Path, lost: str
) -> None:
    """files.replace_directory moves the old step_3 aside, then gives the new one its name."""
    save = shutil.copytree(saved, tmp_path / "run")
    (save / "step_000003").rename(save / ".step_000003.node1.4711.old")
    shutil.copytree(save / "step_000002", save / ".step_000003.0a1b2c3d.tmp")
    shutil.copytree(save / "step_000001", save / ".step_000001.old")  # this one was to be deleted
    if lost == "nothing":
        shutil.copytree(save / ".step_000003.node1.4711.old", save / "step_000003")
    assert checkpoints.step_folders(save)[0].name.strip(".").startswith("step_000003")
    job = begin(2, "--parallel.context", "2", "--checkpoint.save", str(save), "--train.steps", "4")
    assert job.statuses() == [0, 0], job.log()
    assert "resuming from " in job.log() and "damaged" not in job.log()
    assert steps(save) == [1, 2, 3, 4] and list(save.glob(".step_*")) == []
    assert checkpoints.damage(save / "step_000003") == ""
    assert [row["step"] for row in rows_of(save / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.gloo
def test_a_background_writer_that_is_killed_costs_that_checkpoint_only(begin: Begin, tmp_path: Path) -> None:
    save = tmp_path / "run"
    words = ["--checkpoint.save", str(save), "--checkpoint.interval", "1", "--checkpoint.keep_last", "2"]
    job = begin(1, *words, "--checkpoint.async_save", "true", "--train.steps", "100000")
    rank = psutil.Process(job.ranks[0].pid)
    end = time.monotonic() + 100
    while "could not be saved" not in job.log():
        assert time.monotonic() < end, job.log()[-3000:]
        for child in rank.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it was done
                child.kill()
    assert "the process that wrote it was killed" in job.log()
    last = steps(save)[-1] if steps(save) else 0
    job.until(lambda: bool(steps(save)) and steps(save)[-1] > last)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 3 MB, mounted for the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"only root can mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.gloo
@pytest.mark.parametrize("background", ["false", "true"])
def test_a_full_disk_is_said_and_leaves_the_checkpoints_before(
    begin: Begin, small_disk: Path, tmp_path: Path, background: str
) -> None:
    save = small_disk / "run"
    words = ["--checkpoint.save", str(save), "--checkpoint.interval", "1", "--checkpoint.async_save", background]
    job = begin(
        2, *words, "--parallel.context", "2", "--train.steps", "6", "--log.metrics", str(tmp_path / "metrics.jsonl")
    )
    assert job.statuses() == [2, 2], job.log()
    last = steps(save)[-1]
    assert steps(save) == list(range(1, last + 1)) and 1 <= last < 5
    assert f"step_{last + 1:06d}: the checkpoint could not be saved" in job.log()
    assert "of free space there); training goes on" in job.log() and "training goes on" not in job.log(1)
    assert "mend that and start the same command again" in job.log()
    assert "Traceback" not in job.log() + job.log(1)
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert all(not checkpoints.damage(folder) for folder in save.glob("step_*"))
    assert list(save.glob(".step_*")) == []
