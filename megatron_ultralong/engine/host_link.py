"""What moves between a device and its host while Adam steps there: pinned buffers, streams, and who waits for whom.

Nothing here computes. On a GPU copies run on two streams of their own, one each way; on a CPU they are plain ones. The
streams have not been run on a GPU: tests/on_device/test_host_adam.py runs them as late as they may be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


def on_host(elements: int, dtype: torch.dtype = torch.float32, pinned: bool = False) -> Tensor:
    """Zeros in host memory, flat; not touched before they are used."""
    return torch.zeros(elements, dtype=dtype, pin_memory=pinned)


@dataclasses.dataclass
class Slot:
    """Where a piece waits on the host.

    Attributes:
        gradient: as it came.
        weights: as they go back; of an fp32 parameter also as they came.
        fetched: after which both have come.
        sent: after which the weights have gone.
    """

    gradient: Tensor
    weights: Tensor
    fetched: torch.cuda.Event | None = None
    sent: torch.cuda.Event | None = None


class Link:
    """What moves between a device and the host, each way on a stream of its own; on a CPU plain copies."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(2)] if device.type == "cuda" else []

    def begin(self) -> None:
        """Have copies wait for what was launched so far: gradients are whole then, and weights read."""
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self.device))

    def end(self) -> None:
        """Have what is launched from now on wait for the weights."""
        if self._streams:
            torch.cuda.current_stream(self.device).wait_stream(self._streams[1])

    def wait(self, event: torch.cuda.Event | None) -> None:
        """Until the copies that it stands for are done."""
        if event is not None:
            event.synchronize()

    def fetch(self, pairs: Sequence[tuple[Tensor, Tensor]], after: torch.cuda.Event | None) -> torch.cuda.Event | None:
        """Start to copy from the device to the host, once `after` has happened."""
        return self._copy(0, pairs, after)

    def send(self, source: Tensor, target: Tensor) -> torch.cuda.Event | None:
        """Start to copy from the host to the device."""
        return self._copy(1, [(source, target)], None)

    def _copy(
        self, way: int, pairs: Sequence[tuple[Tensor, Tensor]], after: torch.cuda.Event | None
    ) -> torch.cuda.Event | None:
        if not self._streams:
            for source, target in pairs:
                target.copy_(source)
            return None
        stream, done = self._streams[way], torch.cuda.Event()
        with torch.cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
            done.record(stream)
        return done
