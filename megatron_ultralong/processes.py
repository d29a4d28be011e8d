"""Worker processes for data and conversion: begun anew, ended with their parent, and named when one is killed.

They are spawned, since after a fork the threads of torch and of the tokenizers would be missing. Each costs a start of
Python and of what its work imports. Ctrl-C is the parent's to handle. A worker whose parent was killed ends itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from megatron_ultralong.errors import UserError

CONTEXT = multiprocessing.get_context("spawn")
"""Makes the values, events and queues that are handed to `begin`."""

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when `parent` (its process id) ends; Linux only, elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _follow_parent() -> None:
    """End this worker when its parent's end shows on the pipe between them: where `die_with_parent` does nothing."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _begin(parent: int, begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    if sys.platform != "linux":
        _follow_parent()
    begin(*arguments)


def start_pool(processes: int, begin: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """An executor over so many new processes, each of which first calls `begin(*arguments)`."""
    return ProcessPoolExecutor(processes, CONTEXT, initializer=_begin, initargs=(os.getpid(), begin, arguments))


@contextlib.contextmanager
def killed_worker_named(sentence: str) -> Iterator[None]:
    """A worker that died, most likely for want of memory, is this one sentence.

    Raises:
        UserError: instead of BrokenProcessPool.
    """
    try:
        yield
    except BrokenProcessPool:
        raise UserError(sentence) from None
