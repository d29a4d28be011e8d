"""Shards on several processes: started at once, checked and committed in the parent, stopped together."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from types import SimpleNamespace, TracebackType

from megatron_ultralong.data.tokenizer.encoders import Encoder
from megatron_ultralong.data.tokenizing import worker
from megatron_ultralong.data.tokenizing.parts import commit
from megatron_ultralong.data.tokenizing.recheck import recheck
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
        self._futures: dict[Future[Path], Task] = {}
        self._progress = Progress("tokenizing", _megabytes(tasks), "MB")

    def __enter__(self) -> Pool:
        for shard, folder in self._tasks:
            self._futures[self._executor.submit(worker.run, shard, folder)] = shard, folder
        return self

    def collect(self, reference: Encoder | None, each: Callable[[Path], None]) -> None:
        """Wait for all tasks, show progress, give finished parts their names, and call `each` with them.

        Args:
            reference: compares a share of each part; None: the workers have used it themselves.
            each: takes the folder of each part.

        Raises:
            UserError: the first that a task raised, a worker died, or ids differ.
        """
        with self._progress as progress:
            while self._futures:
                done, _ = wait(self._futures, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in [future for future in self._futures if future in done]:
                    with killed_worker_named(_KILLED):
                        temporary = future.result()
                    _finish(temporary, self._futures[future], reference, each)
                    del self._futures[future]
                progress.advance(self._counter.value // 1_000_000 - progress.done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        for future in self._futures:  # finished, but never collected
            if not future.cancelled() and future.exception() is None:
                shutil.rmtree(future.result(), ignore_errors=True)


def run_alone(job: worker.Job, tasks: Sequence[Task], reference: Encoder | None, each: Callable[[Path], None]) -> None:
    """Do the tasks in this process; see `Pool.collect`."""
    counter, left = (SimpleNamespace(value=n, get_lock=contextlib.nullcontext) for n in (0, len(tasks)))
    work = worker.Worker(job, counter, left, threading.Event())
    with Progress("tokenizing", _megabytes(tasks), "MB") as progress:
        work.each_batch = lambda: progress.advance(counter.value // 1_000_000 - progress.done)
        for shard, folder in tasks:
            _finish(work.run(shard, folder), (shard, folder), reference, each)


def _finish(temporary: Path, task: Task, reference: Encoder | None, each: Callable[[Path], None]) -> None:
    """Check a part that was made in a temporary folder, and give it its name."""
    shard, folder = task
    if reference is not None:
        try:
            recheck(
                temporary, reference, lambda number, row: worker.place(shard.ranges[number], row), os.cpu_count() or 1
            )
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    commit(temporary, folder)
    each(folder)


def _megabytes(tasks: Sequence[Task]) -> int | None:
    return sum(shard.bytes for shard, _ in tasks) // 1_000_000 or None
