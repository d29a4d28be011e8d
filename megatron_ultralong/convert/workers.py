"""Jobs shared by threads or processes: the same files, bit for bit, whatever their number.

A job is a part of the model to write or to check; who does it changes nothing in it. Two threads keep a disk busy
while a file is synced, and start at once; processes each take seconds to start. A process that loses its parent is
ended by the kernel (Linux), so a killed conversion leaves none behind.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from megatron_ultralong.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1
_THREADS = 2
_work: Callable[[Any], Any]


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when `parent` (its process id) ends; Linux only, elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    die_with_parent(parent)
    torch.set_num_threads(1)
    _work = work


def _do(job: Any) -> Any:
    return _work(job)


def share(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """The results of `work` on every job, in the order of jobs.

    Args:
        work: can be pickled, and depends on nothing but itself and the job.
        jobs: can be pickled too.
        workers: processes; 1: this one, with two threads.

    Raises:
        UserError: a process was killed, or what `work` raises.
    """
    if workers == 1 or len(jobs) == 1:
        kept = torch.get_num_threads()
        with concurrent.futures.ThreadPoolExecutor(_THREADS, "rows", torch.set_num_threads, (1,)) as threads:
            yield from threads.map(work, jobs)
        torch.set_num_threads(kept)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_begin, initargs=(work, os.getpid())
    )
    try:
        yield from pool.map(_do, jobs)
    except BrokenProcessPool:
        raise UserError("one of the --workers was killed, perhaps for want of memory; give fewer.") from None
    finally:
        pool.shutdown(cancel_futures=True)
