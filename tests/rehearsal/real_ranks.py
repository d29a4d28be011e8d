"""Real ranks over gloo, started once, that take real steps: what a rehearsal is held against.

A step's memory is what PyTorch's allocator was asked for, by the profiler's record, kernels' own scratch included; its
operators are counted by the same mode as a rehearsal's, on tensors with values.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import socket
import warnings
from typing import Any

import torch
import torch.multiprocessing as mp

from megatron_ultralong.config.sections import RunConfig

MOST = 4


class RealRanks:
    """The processes; use as a context manager."""

    def __enter__(self) -> RealRanks:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["megatron_ultralong.training.step"])
        pipes = [context.Pipe() for _ in range(MOST)]
        self.pipes, self.asked = [here for here, _ in pipes], 0
        self.processes = [context.Process(target=_serve, args=(there,), daemon=True) for _, there in pipes]
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)

    def step(self, config: RunConfig, hf_config: dict[str, Any], world_size: int, document: int = 0) -> list[Any]:
        """What `_step` returns on each rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.asked += 1
        for rank, pipe in enumerate(self.pipes[:world_size]):
            pipe.send((self.asked, (rank, world_size, port, config, hf_config, document)))
        results = [self._answer(pipe) for pipe in self.pipes[:world_size]]
        for result in results:
            if isinstance(result, str):
                raise AssertionError(result)
        return results

    def _answer(self, pipe: Any) -> Any:
        """To the question asked last: one that comes late, to a question given up, is passed over."""
        number = 0
        while number != self.asked:
            assert pipe.poll(300), "a rank does not answer"
            number, result = pipe.recv()
        return result


def _serve(pipe: Any) -> None:
    import traceback

    torch.set_num_threads(1)
    while (question := pipe.recv()) is not None:
        number, job = question
        try:
            pipe.send((number, _step(*job)))
        except BaseException:
            pipe.send((number, traceback.format_exc()))


@dataclasses.dataclass
class RealStep:
    """One real step of one rank.

    Attributes:
        standing: bytes that stand between steps.
        allocated: bytes at the peak as the allocator counts them, kernels' and gloo's own included.
        held: the same of tensors alone.
        operators: launched, by name.
        messages: by kind, group and bytes.
    """

    standing: int
    allocated: int
    held: int
    operators: dict[str, int]
    messages: dict[Any, int]


def _step(
    rank: int, world_size: int, port: int, config: RunConfig, hf_config: dict[str, Any], document: int
) -> RealStep:
    """What a rank of a real job has: see RealStep."""
    from megatron_ultralong.engine import groups
    from megatron_ultralong.rehearsal.operators import Operators, asker
    from megatron_ultralong.rehearsal.rehearse import build
    from megatron_ultralong.training.measured_memory import measured
    from megatron_ultralong.training.step import train_step

    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    groups.initialize(config.parallel, config.train.seed)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            run = build(config, hf_config, document)
            train_step(run, 0)
            with torch.profiler.record_function(MARK):
                train_step(run, 1)
        with measured(run) as memory:
            train_step(run, 2)
        with Operators(asker) as found:
            train_step(run, 3)
        messages = sum(found.messages.values(), collections.Counter())
        standing = _standing(run)
        return RealStep(
            standing, _peak_bytes(profiler), standing + memory.peak, _launched(found, messages), dict(messages)
        )
    finally:
        groups.finalize()


MARK = "the step that counts"


HOST = ("random.py: fork",)
"""Functions that compare generators' states, on the host."""


def _launched(found: Any, messages: Any) -> dict[str, int]:
    """Operators of a step, without those of the host alone: states of generators compared, gloo's reduce-scatter.

    gloo copies a reduce-scatter's result out of a buffer of its own in the thread that waits for it, once a call.
    """
    counts = sum((each for at, each in found.by_part.items() if at not in HOST), collections.Counter())
    names = {name: n for name, n in counts.items() if not name.startswith("c10d.")}
    names["copy_"] -= sum(n for message, n in messages.items() if message.kind == "reduce-scatter")
    return names


def _standing(run: Any) -> int:
    """Bytes of what lives between steps, each storage once."""
    from megatron_ultralong.engine import mcore
    from megatron_ultralong.training.measured_memory import standing

    tensors = [tensor for part in standing(run).values() for tensor in part]
    tensors += [run.weights.rotary_pos_emb._kept[1]]
    tensors += mcore.parallel_state.get_global_memory_buffer().buffer.values()
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}.values())


def _peak_bytes(profiler: torch.profiler.profile) -> int:
    """Most bytes that were allocated at a time during the marked step, of all that were since the profiler began."""
    events: Any = profiler.profiler
    events = sorted(events.kineto_results.events(), key=lambda event: event.start_ns())
    begin = next(event.start_ns() for event in events if event.name() == MARK)
    total = peak = 0
    for event in events:
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total if event.start_ns() >= begin else 0)
    return peak
