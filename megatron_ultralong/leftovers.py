"""Names of what is being written, and who may delete what a killed writer left under such a name.

A temporary name holds the writer's host and process: `.NAME.HOST.PID.tmp`. On the writer's own host a look at the
process tells whether it lives. From any other host nothing tells, so a writer touches what it writes once a minute,
and what nobody touched for an hour is a leftover: its lease has ended. A writer that was stopped for so long finds its
files gone, and says so. The clocks of hosts may differ by minutes. A container has processes of its own, so it counts
as a host, even under its host's name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LEASE = 3600.0
"""Seconds without a touch after which what was written from another host is a leftover."""
BEAT = 60.0
"""Seconds between touches."""
_FIRST_NAMESPACE = 0xEFFFFFFC
"""Number of the host's own process namespace, the same in every Linux."""


def _host() -> str:
    """This host, or this container of it."""
    name = socket.gethostname()
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # no Linux, or no /proc
        return name
    return name if namespace == _FIRST_NAMESPACE else f"{name}-{namespace}"


def beside(path: Path, ending: str) -> Path:
    """The name under which this process writes `path` ("tmp") or puts aside what it replaces ("old")."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{ending}")


def remove_leftovers(path: Path, ending: str) -> None:
    """Delete what killed writers of `path` left: of this host those that have ended, of others by their lease."""
    head, tail = f".{path.name}.", f".{ending}"
    for left in path.parent.iterdir():
        if not (left.name.startswith(head) and left.name.endswith(tail)):
            continue
        host, _, process = left.name[len(head) : -len(tail)].rpartition(".")
        if not host or not process.isdigit():
            continue
        if not _runs(int(process)) if host == _host() else time.time() - _touched(left) > LEASE:
            remove(left)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all in it, as far as that can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _touched(path: Path) -> float:
    """When anything of it was last written or touched; now, where it goes away meanwhile."""
    try:
        return max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
    except OSError:
        return time.time()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


class _Heart:
    """Touches what is being written, in one thread of this process that ends when nothing is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.paths: set[Path] = set()
        self.thread: threading.Thread | None = None

    def add(self, path: Path) -> None:
        with self.lock:
            self.paths.add(path)
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
                self.thread.start()

    def discard(self, path: Path) -> None:
        with self.lock:
            self.paths.discard(path)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            with self.lock:
                if not self.paths:
                    self.thread = None
                    return
                for path in self.paths:
                    touch(path)


def touch(path: Path) -> None:
    """Set the time of a file or folder to now, if it is there."""
    with contextlib.suppress(OSError):
        os.utime(path)


_heart = _Heart()


def _forked() -> None:
    """A forked child has not the thread, and its lock may have been held; what is written is its parent's."""
    _heart.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_forked)


@contextlib.contextmanager
def alive(path: Path) -> Iterator[None]:
    """Keep the lease of `path` for as long as the block lasts."""
    _heart.add(path)
    try:
        yield
    finally:
        _heart.discard(path)
