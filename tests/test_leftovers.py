"""Who may delete what a writer left: never a live one's, on any host."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ultralong import leftovers
from megatron_ultralong.files import atomic_directory, atomic_file

DEAD = 2**22 + 1
"""A process number that Linux gives to none."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def age(path: Path, seconds: float) -> None:
    """Make a file or folder, and all in it, look as if nobody touched it for so long."""
    then = time.time() - seconds
    for entry in (*path.rglob("*"), path):
        os.utime(entry, (then, then))


def leave(path: Path, host: str, process: int, ending: str = "tmp", folder: bool = True) -> Path:
    """What a writer of `path` has half written."""
    left = path.with_name(f".{path.name}.{host}.{process}.{ending}")
    if folder:
        left.mkdir()
        (left / "half").write_text("half")
    else:
        left.write_text("half")
    return left


def write(path: Path, folder: bool) -> None:
    if folder:
        with atomic_directory(path) as temporary:
            (temporary / "whole").write_text("")
    else:
        with atomic_file(path) as temporary:
            temporary.write_text("")


@pytest.mark.parametrize("folder", [False, True])
def test_what_another_host_left_goes_after_its_lease(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "out"
    left = [leave(target, host, DEAD, folder=folder) for host in ("node7", "node7.cluster.example")]
    write(target, folder)
    assert all(path.exists() for path in left)  # just written: it may live
    for path in left:
        age(path, leftovers.LEASE - 60)
    write(target, folder)
    assert all(path.exists() for path in left)
    for path in left:
        age(path, leftovers.LEASE + 60)
    write(target, folder)
    assert names(tmp_path) == ["out"]


def test_what_was_put_aside_goes_after_its_lease_too(tmp_path: Path) -> None:
    left = leave(tmp_path / "out", "node7", DEAD, "old")
    write(tmp_path / "out", True)
    assert left.exists()
    age(left, leftovers.LEASE + 60)
    write(tmp_path / "out", True)
    assert names(tmp_path) == ["out"]


def test_a_file_touched_within_a_folder_keeps_the_lease(tmp_path: Path) -> None:
    left = leave(tmp_path / "out", "node7", DEAD)
    age(left, 2 * leftovers.LEASE)
    (left / "half").write_text("more")
    age_of_folder = time.time() - 2 * leftovers.LEASE
    os.utime(left, (age_of_folder, age_of_folder))
    write(tmp_path / "out", True)
    assert left.exists()


def test_a_live_process_of_this_host_keeps_what_it_writes(tmp_path: Path) -> None:
    host = leftovers.beside(tmp_path / "out", "tmp").name.split(".", 2)[2].rsplit(".", 2)[0]
    left = leave(tmp_path / "out", host, os.getppid())
    age(left, 10 * leftovers.LEASE)
    gone = leave(tmp_path / "out", host, DEAD)
    write(tmp_path / "out", True)
    assert left.exists() and not gone.exists()


def test_names_that_are_not_a_writers_stay(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in (".out.notes.tmp", ".out.tmp", "out.node7.5.tmp", ".other.node7.5.tmp")]
    for path in mine:
        path.write_text("")
        age(path, 10 * leftovers.LEASE)
    write(tmp_path / "out", False)
    assert all(path.exists() for path in mine)


WRITER = """
import sys, time
from pathlib import Path
from megatron_ultralong import files, leftovers
leftovers.BEAT = 0.05
leftovers._host = lambda: "node7"
with files.atomic_directory(Path(sys.argv[1])) as temporary:
    print(temporary, flush=True)
    sys.stdin.readline()  # a long computation that writes nothing
    (temporary / "a").write_text("a")
"""


def test_a_writer_on_another_host_that_lives_is_left_alone(tmp_path: Path) -> None:
    """It writes nothing for longer than its lease, and touches what it writes."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out")]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdin is not None and writer.stdout is not None
    temporary = Path(writer.stdout.readline().strip())
    age(temporary, 2 * leftovers.LEASE)
    end = time.monotonic() + 30
    while time.time() - temporary.stat().st_mtime > 10:
        assert time.monotonic() < end
        time.sleep(0.02)
    write(tmp_path / "out", True)
    assert temporary.exists()
    writer.communicate("\n", timeout=30)
    assert writer.returncode == 0
    assert names(tmp_path / "out") == ["a"] and names(tmp_path) == ["out"]


def test_the_heartbeat_ends_when_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heart = leftovers._Heart()
    monkeypatch.setattr(leftovers, "BEAT", 0.01)
    heart.add(tmp_path)
    thread = heart.thread
    assert thread is not None
    heart.discard(tmp_path)
    thread.join(30)
    assert not thread.is_alive() and heart.thread is None


def test_a_forked_child_may_write_too(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("")
        child = os.fork()
        if child == 0:
            write(tmp_path / "b", True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert names(tmp_path) == ["a", "b"]
