"""Files that stay open while they are read from, and few of them: an LRU, whatever the number of files.

A checkpoint of 256 ranks has 512 files, and a process is often allowed 1,024. Opening a file anew costs microseconds
on a local disk, so the bound is a quarter of what the process may open, at most 128.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.errors import UserError

_MOST = 128
_SHARE = 4


def limit() -> int:
    """Files that one `Handles` has open at most, but for those that are being read from."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(1, min(_MOST, soft // _SHARE))


class Handles:
    """Open files, the longest unused first; any thread may read from any of them."""

    def __init__(self) -> None:
        self.open: collections.OrderedDict[Path, int] = collections.OrderedDict()
        self.readers: collections.Counter[Path] = collections.Counter()
        self.lock = threading.Lock()

    def __del__(self) -> None:
        for descriptor in self.open.values():
            os.close(descriptor)

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """A descriptor to read from, for as long as the block lasts.

        Raises:
            OSError: it cannot be opened.
        """
        with self.lock:
            if path not in self.open:
                self._close_idle(limit() - 1)
                self.open[path] = self._descriptor(path)
            self.open.move_to_end(path)
            self.readers[path] += 1
            descriptor = self.open[path]
        try:
            yield descriptor
        finally:
            with self.lock:
                self.readers[path] -= 1

    def _descriptor(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._close_idle(0)  # others in this process took what was left
        return os.open(path, os.O_RDONLY)

    def _close_idle(self, keep: int) -> None:
        """Close files that nobody reads from until `keep` are open."""
        idle = [path for path in self.open if not self.readers[path]]
        for path in idle[: max(0, len(self.open) - keep)]:
            os.close(self.open.pop(path))
            del self.readers[path]


def unreadable(path: Path, error: OSError) -> UserError:
    """The sentence for a file that cannot be read; one too many open files is no damage of it."""
    many = error.errno in (errno.EMFILE, errno.ENFILE)
    mend = "raise the limit with ulimit -n" if many else "copy it again"
    return UserError(f"{path} cannot be read ({error.strerror}); {mend}.")
