"""Streams that are as late as they may be: what a GPU might not have done yet is not done here either.

An operation on a stream waits until something waits for it. Code that forgets to wait reads what is not there yet, or
overwrites what has not been read, and its results are wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_ultralong.engine.replacing import replaced


class LateStream:
    """In the place of torch.cuda.Stream."""

    active: LateStream | None = None

    def __init__(self, device: Any = None) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.issued = self.done = 0

    def issue(self, operation: Callable[[], None]) -> None:
        """Have it done at the latest moment."""
        self.waiting.append(operation)
        self.issued += 1

    def run(self, until: int) -> None:
        """What was issued up to there is done when this returns."""
        while self.done < until:
            self.done += 1
            self.waiting.pop(0)()

    def wait_stream(self, stream: LateStream) -> None:
        """As CUDA's."""
        until = stream.issued
        self.issue(lambda: stream.run(until))

    def wait_event(self, event: LateEvent) -> None:
        """As CUDA's."""
        stream, at = event.stream, event.at
        assert stream is not None
        self.issue(lambda: stream.run(at))


class LateEvent:
    """In the place of torch.cuda.Event."""

    def __init__(self) -> None:
        self.stream: LateStream | None = None
        self.at = 0

    def record(self, stream: LateStream) -> None:
        """As CUDA's."""
        self.stream, self.at = stream, stream.issued

    def synchronize(self) -> None:
        """As CUDA's."""
        assert self.stream is not None
        self.stream.run(self.at)


class _LateCopies(TorchFunctionMode):
    """Copies that are told not to block go on the stream that is active."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.copy_ and (kwargs or {}).get("non_blocking"):
            assert LateStream.active is not None, "a copy that does not block, on the stream that computes"
            LateStream.active.issue(lambda: args[0].data.copy_(args[1]))
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _active(stream: LateStream) -> Iterator[None]:
    with replaced(LateStream, "active", stream):
        yield


@contextlib.contextmanager
def late() -> Iterator[LateStream]:
    """Within it, torch.cuda's streams and events are late ones; gives the one that computes."""
    computing = LateStream()
    with contextlib.ExitStack() as stack:
        for name, value in (
            ("Stream", LateStream),
            ("Event", LateEvent),
            ("stream", _active),
            ("current_stream", lambda device=None: computing),
        ):
            stack.enter_context(replaced(torch.cuda, name, value))
        stack.enter_context(_LateCopies())
        yield computing
