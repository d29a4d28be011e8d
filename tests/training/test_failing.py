"""A rank that fails alone: its traceback comes first, and the job is over within a minute, whatever blocks."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.errors import UserError
from megatron_ultralong.training import whereabouts
from megatron_ultralong.training.roll_call import RollCall
from tests.training.jobs import Job

Begin = Callable[..., Job]
BAD = 2
LONG = ["--train.steps", "100000", "--parallel.context", "2", "--parallel.timeout", "600"]


def block(*_: Any, **__: Any) -> None:
    """As NCCL's own end does while its peers wait."""
    time.sleep(3600)


def fail_alone(rank: int, error: BaseException) -> None:
    """Have rank BAD raise in its third step, and every end of the groups block.

    A child of that rank keeps its connections open, so that, as with NCCL, no peer learns of its end from them.
    """
    from megatron_ultralong.engine import groups
    from megatron_ultralong.training import loop

    dist.destroy_process_group = block
    groups.abort = block
    step = loop.train_step

    def failing(run: Any, number: int) -> Any:
        if number == 2:
            if os.fork() == 0:
                time.sleep(120)
                os._exit(0)
            raise error
        return step(run, number)

    if rank == BAD:
        loop.train_step = failing


def out_of_memory(rank: int) -> None:
    fail_alone(rank, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))


def bad_read(rank: int) -> None:
    fail_alone(rank, OSError(5, "Input/output error"))


def mistake(rank: int) -> None:
    fail_alone(rank, UserError("the file is no file; give one."))


def everyones_mistake(rank: int) -> None:
    """Every rank meets it, the first a little before the others, which are in a collective by then or not."""
    from megatron_ultralong.training import loop

    def failing(run: Any, number: int) -> Any:
        time.sleep(1.0 * rank)
        raise UserError("the file is no file; give one.")

    loop.train_step = failing


def ended(job: Job) -> tuple[list[int | None], float]:
    """Statuses, and seconds from the failure to the end of the last rank."""
    job.until(lambda: "error" in job.log(BAD).lower(), 120)
    started = time.monotonic()
    return job.statuses(90), time.monotonic() - started


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (out_of_memory, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"),
        pytest.param(bad_read, "OSError: [Errno 5] Input/output error", marks=pytest.mark.slow),
    ],
)
def test_its_traceback_comes_first_and_the_job_ends(begin: Begin, change: Callable[[int], None], said: str) -> None:
    job = begin(4, *LONG, change=change)
    statuses, seconds = ended(job)
    assert statuses == [1, 1, 1, 1], job.log()
    assert seconds < 60
    own = job.log(BAD)
    assert own.index(f"rank {BAD} failed:\nTraceback (most recent call last):") == 0 and own.rstrip().endswith(said)
    (line,) = [line for line in job.log(0).splitlines() if line.startswith("error: ")]
    assert re.search(rf"rank {BAD} left before its end \(rank {BAD}: .*\); rank 0 waited at step 3, in ", line), line
    assert "Traceback" not in job.log(0) + job.log(1) + job.log(3)
    assert "error" not in job.log(1) + job.log(3)
    first = (job.folder / f"rank{BAD}.log").stat().st_mtime
    assert first < (job.folder / "rank0.log").stat().st_mtime


@pytest.mark.gloo
def test_one_ranks_mistake_is_one_sentence(begin: Begin) -> None:
    job = begin(4, *LONG, change=mistake)
    statuses, seconds = ended(job)
    assert statuses == [1, 1, 2, 1] and seconds < 60
    assert job.log(BAD) == f"error, rank {BAD}: the file is no file; give one.\n"
    assert f"rank {BAD} left before its end (rank {BAD}: the file is no file; give one.)" in job.log(0)


@pytest.mark.gloo
def test_everyones_mistake_is_said_once(begin: Begin) -> None:
    job = begin(4, *LONG, change=everyones_mistake)
    assert job.statuses(90) == [2, 2, 2, 2]
    assert job.log(0).splitlines()[-1] == "error: the file is no file; give one."
    assert job.log(1) + job.log(2) + job.log(3) == ""


class Counted:
    """A store that counts the keys which requests touch."""

    def __init__(self) -> None:
        self.store, self.keys = dist.HashStore(), 0

    def set(self, key: str, value: str) -> None:
        self.keys += 1
        self.store.set(key, value)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.keys += len(keys)
        return [self.store.get(key) for key in keys]


def a_beat(ranks: int) -> tuple[int, list[RollCall]]:
    """Keys touched by one beat of so many ranks, of which rank 3 is silent and rank 5 has failed."""
    store = Counted()
    calls = [RollCall(store, rank, ranks, beat=0.01) for rank in range(ranks)]
    for beat in range(3):
        store.keys = 0
        for call in calls:
            if call.rank != 3 or beat == 0:
                call.say("failed: a reason" if call.rank == 5 else f"{beat} step 1, in x.py:{beat}")
        for call in calls:
            call.hear()
        time.sleep(0.05)
    return store.keys, calls


def test_a_beat_of_the_roll_call_is_linear_in_ranks() -> None:
    (few, _), (many, calls) = a_beat(16), a_beat(256)
    assert many / few < 16.5 and many <= 4 * 256
    for call in calls:
        assert list(call.silent) == [3] and list(call.failed) == [5] and call.places[3] == "step 1, in x.py:0"
    calls[1].hear()
    assert calls[1].silent.keys() == {0, 3}  # rank 0 has said nothing since


class Nested(torch.autograd.Function):
    """Backward within backward, so deep that autograd goes on in a thread of its own, as it always does on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, depth: int, deepest: Callable[[], None]) -> torch.Tensor:
        ctx.rest = depth, deepest
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        depth, deepest = ctx.rest
        if depth == 0:
            deepest()
        else:
            with torch.enable_grad():
                x = torch.ones(1, requires_grad=True)
                Nested.apply(x, depth - 1, deepest).sum().backward()
        return gradients[0], None, None


def test_the_place_of_a_backward_is_read_in_autograds_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    found, threads = [], []

    def look(*_: Any) -> list[tuple[int, int]]:
        threads.append(threading.get_ident())
        other = threading.Thread(target=lambda: found.append(whereabouts.of_process()))
        other.start()
        other.join()
        return []

    monkeypatch.setattr(zigzag, "chunks", look)  # called by zigzag.spans, a line of ours
    x = torch.ones(1, requires_grad=True)
    Nested.apply(x, 100, lambda: zigzag.spans(64, 0, 2)).sum().backward()
    assert threads[-1] != threading.main_thread().ident, "autograd stayed in the main thread"
    assert re.fullmatch(r"zigzag\.py:\d+ \w+ \(backward\)", found[-1]), found
    assert whereabouts.of_process() == whereabouts.NOWHERE or "backward" not in whereabouts.of_process()


def test_reading_the_place_holds_no_tensor() -> None:
    """A frame that is kept keeps its locals: a thread's tensors would live until Python next collects cycles."""
    entered, leave, gone = threading.Event(), threading.Event(), []

    def compute() -> None:
        tensor = torch.ones(1)
        gone.append(weakref.ref(tensor))
        entered.set()
        leave.wait()

    worker = threading.Thread(target=compute)
    worker.start()
    entered.wait()
    gc.disable()
    try:
        other = threading.Thread(target=whereabouts.of_process)
        other.start()
        other.join()
        leave.set()
        worker.join()
        assert gone[0]() is None
    finally:
        gc.enable()
