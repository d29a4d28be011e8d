"""Runs stages: each once, whatever kills come, by one process at a time, and not past the time that is left.

A stage that ended well leaves done.json in its folder, written last. Without it the command is given again: every tool
here goes on where it was or replaces what it wrote. A stage is locked while its command runs, and the command holds the
lock too, so that one whose run.py was killed is waited for and not doubled. Two run.py side by side, one a core, share
the plan: each takes the next run that the other has not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from _stages import Stage

from megatron_ultralong.files import read_json, write_json

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
DONE, LOG = "done.json", "log.txt"
THREADS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "LC_ALL": "C"}
"""One core a process: the same bits wherever it runs, and two of them fill two cores better than one with two ranks."""
_SHOWN = 12  # lines of a failed command


class StageFailedError(Exception):
    """A command ended badly; the argument says which and shows its last lines."""


class OutOfTimeError(Exception):
    """The next stage would end past --hours; the argument is its name."""


class Work:
    """The folder of all stages.

    Args:
        folder: where they are.
        hours: of wall time from now that may be spent; 0: no limit.
    """

    def __init__(self, folder: Path, hours: float = 0.0) -> None:
        self.folder = folder.resolve()
        self.deadline = time.monotonic() + 3600 * hours if hours else float("inf")
        self.measured = _measured(self.folder)

    def done(self, stage: Stage) -> dict[str, Any] | None:
        """What a finished stage says of itself; None: it is still to be done."""
        path = self.folder / stage.folder / DONE
        return read_json(path, "a stage's record", "delete its folder") if path.exists() else None

    def expected(self, stage: Stage) -> float:
        """Seconds: the estimate, corrected by what stages of this name have taken."""
        ratios = self.measured.get(stage.name, ())
        return stage.estimate * (statistics.median(ratios) if ratios else 1.0)

    def ensure(self, stage: Stage) -> dict[str, Any]:
        """Have a stage done.

        Raises:
            StageFailedError: its command failed.
            OutOfTimeError: it would end past the limit; nothing was begun.
        """
        if found := self.done(stage):
            return found
        if time.monotonic() + self.expected(stage) > self.deadline:
            raise OutOfTimeError(stage.name)
        with self.locked(stage.folder) as lock:
            return self.done(stage) or self._run(stage, lock)

    def _run(self, stage: Stage, lock: IO[str]) -> dict[str, Any]:
        folder = self.folder / stage.folder
        folder.mkdir(parents=True, exist_ok=True)
        words = list(self._words(stage))
        attempts = _attempts(folder) + 1
        logger.info("%s (about %.0f s)", stage.folder, self.expected(stage))
        start, before = time.monotonic(), _cpu_seconds()
        with (folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"attempt {attempts}: {' '.join(words)}\n")
            log.flush()
            done = subprocess.run(
                words, cwd=ROOT, env=os.environ | THREADS | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, pass_fds=[lock.fileno()],
            )  # fmt: skip
        if done.returncode:
            lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
            raise StageFailedError(f"{stage.folder} ended with {done.returncode}:\n  " + "\n  ".join(lines))
        seconds = time.monotonic() - start
        record: dict[str, Any] = {
            "name": stage.name,
            "command": " ".join(stage.words),
            "seconds": round(seconds, 2),
            "cpu_seconds": round(_cpu_seconds() - before, 2),
            "estimate": round(stage.estimate, 2),
            "attempts": attempts,
        }
        write_json(folder / DONE, record)
        self.measured.setdefault(stage.name, []).append(seconds / stage.estimate)
        return record

    def _words(self, stage: Stage) -> Iterator[str]:
        """The command with this machine's paths, `*` as the files that fit."""
        yield sys.executable
        for word in stage.words[1:]:
            path = word.replace("@out", f"@/{stage.folder}").replace("@/", f"{self.folder}/")
            if "*" in word and word.startswith("@"):
                yield from sorted(map(str, self.folder.glob(os.path.relpath(path, self.folder))))
            else:
                yield path

    @contextlib.contextmanager
    def locked(self, name: str, wait: bool = True) -> Iterator[IO[str]]:
        """Hold a lock while the block runs.

        Raises:
            BlockingIOError: another process holds it, and `wait` is False.
        """
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                logger.info("%s is being done by another process; waiting for it", name)
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream


def left(work: Work, listed: Iterable[Stage]) -> tuple[int, float]:
    """How many stages are still to be done, and their expected seconds."""
    todo = [stage for stage in listed if not work.done(stage)]
    return len(todo), sum(map(work.expected, todo))


def _measured(folder: Path) -> dict[str, list[float]]:
    """Stage name -> measured over estimated seconds, of stages that went through at once."""
    found: dict[str, list[float]] = {}
    for path in folder.glob(f"*/{DONE}"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["attempts"] == 1:
            found.setdefault(record["name"], []).append(record["seconds"] / record["estimate"])
    return found


def _attempts(folder: Path) -> int:
    path = folder / LOG
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return sum(line.startswith("attempt ") for line in text.splitlines())


def _cpu_seconds() -> float:
    """Of all commands that have ended, their own children included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
