"""Jobs shared by threads or processes: the same files, bit for bit, whatever their number.

A job is a part of the model to write or to check; who does it changes nothing in it. Two threads keep a disk busy
while a file is synced, and start at once; processes each take seconds to start.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from megatron_ultralong.processes import killed_worker_named, start_pool

Job = TypeVar("Job")
Result = TypeVar("Result")
_THREADS = 2
_work: Callable[[Any], Any]


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
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
    pool = start_pool(min(workers, len(jobs)), _begin, work)
    try:
        with killed_worker_named("one of the --workers was killed, perhaps for want of memory; give fewer."):
            yield from pool.map(_do, jobs)
    finally:
        pool.shutdown(cancel_futures=True)
