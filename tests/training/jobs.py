"""Training runs that go on while the test looks on, signals, stops and kills.

Each rank is a process as srun would start it, without torchrun. It is forked from a server that has imported the
package already, so a start costs a second and not ten; from there on it is `python -m megatron_ultralong.train`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
if not torch.cuda.device_count():  # megatron-core asks for CUDA as it is imported, and no fork can use it then
    _CONTEXT.set_forkserver_preload(["megatron_ultralong.training.loop", "tests.training.jobs"])


class Job:
    """A run in progress.

    Args:
        folder: where each rank's output goes.
        processes: ranks.
        words: the command line.
        change: called in each rank, with its number, before the command: a module's function, which spoils something.
        main: the command, a module's function; None: training's.
    """

    def __init__(
        self,
        folder: Path,
        processes: int,
        words: Sequence[str],
        change: Callable[[int], None] | None = None,
        main: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        job = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
        job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.ranks = []
        for rank in range(processes):
            environment = {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (environment, str(folder / f"rank{rank}.log"), list(words), change, main)
            self.ranks.append(_CONTEXT.Process(target=_rank, args=arguments))
            self.ranks[-1].start()

    def log(self, rank: int = 0) -> str:
        """What a rank has printed so far."""
        path = self.folder / f"rank{rank}.log"
        return path.read_text() if path.exists() else ""

    def signal(self, rank: int, number: signal.Signals) -> None:
        assert self.ranks[rank].is_alive(), self.log(rank)
        os.kill(self.ranks[rank].pid, number)

    def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait for a condition; fail if a rank ends first or it takes too long."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log()[-2000:]
            assert all(rank.is_alive() for rank in self.ranks), self.log()[-4000:]
            time.sleep(0.02)

    def statuses(self, seconds: float = 120.0) -> list[int | None]:
        """Every rank's exit status, once all have ended; None for one that has not within `seconds`."""
        end = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(0.1, end - time.monotonic()))
        return [rank.exitcode for rank in self.ranks]

    def kill(self) -> None:
        """SIGKILL every rank that runs and the processes it forked; the number of one that ended may be another's."""
        for rank in self.ranks:
            if rank.is_alive():
                try:
                    os.killpg(rank.pid, signal.SIGKILL)
                except ProcessLookupError:  # it has not made its group yet
                    rank.kill()
            rank.join()


def _rank(
    environment: dict[str, str],
    log: str,
    words: list[str],
    change: Callable[[int], None] | None,
    main: Callable[[], None] | None,
) -> None:
    """One rank: its own process group, output and environment, then the command's own main."""
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.argv = ["train", *words]
    torch.set_num_threads(1)
    from megatron_ultralong.train import main as train

    if change is not None:
        change(int(environment["RANK"]))
    (main or train)()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl that may not be there yet, or be in the middle of its last line."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
