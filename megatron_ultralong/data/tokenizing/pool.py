"""Shards on several processes: started at once, committed in the parent, stopped together."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from types import SimpleNamespace, TracebackType

from megatron_ultralong.data.tokenizing import worker
from megatron_ultralong.data.tokenizing.parts import commit
from megatron_ultralong.data.tokenizing.shards import Shard
from megatron_ultralong.processes import CONTEXT, killed_worker_named, start_pool
from megatron_ultralong.progress import Progress

Task = tuple[Shard, Path]
"""A shard, and the folder of its part."""

_KILLED = (
    "a worker process died, most likely killed because memory ran out; run again with fewer --workers, finished "
    "shards are kept."
)


class Pool:
    """Worker processes that begin with the tasks at once; nothing of theirs counts before `collect`.

    Args:
        job: what they do.
        tasks: in the order of the input.
    """

    def __init__(self, job: worker.Job, tasks: Sequence[Task]) -> None:
        self._counter, self._stop = CONTEXT.Value("q", 0), CONTEXT.Event()
        self._tasks = tasks
        self._executor = start_pool(
            job.processes, worker.start, job, self._counter, CONTEXT.Value("q", len(tasks)), self._stop
        )
        self._futures: dict[Future[Path], Path] = {}
        self._progress = Progress("tokenizing", _megabytes(tasks), "MB")

    def __enter__(self) -> Pool:
        for shard, folder in self._tasks:
            self._futures[self._executor.submit(worker.run, shard, folder)] = folder
        return self

    def collect(self, each: Callable[[Path], None]) -> None:
        """Wait for all tasks, show progress, give finished parts their names, and call `each` with them.

        Raises:
            UserError: the first that a task raised, or a worker died.
        """
        with self._progress as progress:
            while self._futures:
                done, _ = wait(self._futures, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in [future for future in self._futures if future in done]:
                    with killed_worker_named(_KILLED):
                        folder = self._futures.pop(future)
                        commit(future.result(), folder)
                    each(folder)
                progress.advance(self._counter.value // 1_000_000 - progress.done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        for future in self._futures:  # finished, but never collected
            if not future.cancelled() and future.exception() is None:
                shutil.rmtree(future.result(), ignore_errors=True)


def run_alone(job: worker.Job, tasks: Sequence[Task], each: Callable[[Path], None]) -> None:
    """Do the tasks in this process, and call `each` with the folder of every part."""
    counter, left = (SimpleNamespace(value=n, get_lock=contextlib.nullcontext) for n in (0, len(tasks)))
    work = worker.Worker(job, counter, left, threading.Event())
    with Progress("tokenizing", _megabytes(tasks), "MB") as progress:
        work.each_batch = lambda: progress.advance(counter.value // 1_000_000 - progress.done)
        for shard, folder in tasks:
            commit(work.run(shard, folder), folder)
            each(folder)


def _megabytes(tasks: Sequence[Task]) -> int | None:
    return sum(shard.bytes for shard, _ in tasks) // 1_000_000 or None
