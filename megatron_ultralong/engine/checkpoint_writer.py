"""megatron-core's checkpoint writer, made to fail in ways that can be told.

As it is, a rank forks a process a file and waits for each for ever, even for one that was killed; their results
come through a spawned server that a signal to the whole job ends; and what rank 0 writes alone, it fails at alone.
Here a rank writes its files one after another, in place or in one forked process, and hands the results back in a
file without a name; a failure of rank 0's is kept until every rank can hear of it.
"""

from __future__ import annotations

import pickle
import queue
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ultralong.engine import mcore, versions


class _Results:
    """What a writer hands back; it outlives a fork, and says so if the writer did not. The queue of one value."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()

    def put(self, value: Any) -> None:
        self.file.seek(0)
        self.file.write(pickle.dumps(value))
        self.file.flush()

    def get_nowait(self) -> Any:
        self.file.seek(0)
        data = self.file.read()
        self.file.seek(0)
        self.file.truncate()
        return pickle.loads(data) if data else OSError("the process that wrote it was killed")


class CheckpointWriter:
    """Plans and writes checkpoints, one at a time; every rank has one and calls it alike."""

    def __init__(self) -> None:
        self._calls = mcore.AsyncCallsQueue()
        self._error: OSError | None = None
        mcore.filesystem_async._results_queue = _Results()

    def plan(self, state: dict[str, Any], folder: str) -> tuple[Any, OSError | None]:
        """Agree on who writes what into the empty folder, and write what is not sharded.

        Returns:
            What `write` and `start` take, and rank 0's failure.
        """
        self._error = None
        request = versions.plan_save(state, folder, self._write_common)
        if request.async_fn is not None:
            (transforms, *_) = request.async_fn.args
            request = request._replace(async_fn=partial(_write, transforms))
        return request, self._error

    def _write_common(self, values: Any, folder: Any) -> None:
        """Write what is not sharded, on rank 0, and keep its failure."""
        if dist.get_rank() == 0:
            try:
                torch.save(values, Path(folder) / "common.pt")
            except (OSError, RuntimeError) as error:  # the latter is torch's for a full disk
                self._error = OSError(str(error))

    def write(self, request: Any) -> None:
        """Write now.

        Raises:
            CheckpointException: on every rank, if any could not.
        """
        request.execute_sync()

    def start(self, request: Any) -> None:
        """Copy to host memory and write in a forked process."""
        self._calls.schedule_async_request(request)

    def finished(self, wait: bool) -> bool:
        """Whether what was started is written on every rank.

        Raises:
            CheckpointException: on every rank, if any could not.
        """
        return bool(self._calls.maybe_finalize_async_calls(blocking=wait))


def _write(transforms: list[Any], rank: int, buckets: list[Any], results: _Results) -> None:
    """Write a rank's files; in place of megatron-core's write_preloaded_data_multiproc."""
    written: Any = {}
    for place, bucket in enumerate(buckets):
        done: queue.Queue[Any] = queue.Queue()
        count: queue.Queue[int] = queue.Queue()
        count.put(place)
        mcore.filesystem_async.FileSystemWriterAsync.write_preloaded_data(transforms, place, bucket, done, count, True)
        _, written[place] = done.get()
        if isinstance(written[place], Exception):
            written = written[place]
            break
    results.put(written)
