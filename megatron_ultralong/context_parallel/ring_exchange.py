"""P2P communication of the ring: batched isend and irecv, under way while a block is computed.

Two buffers take turns: one is at hand and being sent on, the other is being received. Rows travel in place, a message
for each range of rows, without packing. A lost neighbour ends the wait with an error that names it and the step.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.context_parallel.rectangles import Ranges

_connected: weakref.WeakSet[dist.ProcessGroup] = weakref.WeakSet()


class LostPeerError(RuntimeError):
    """A neighbour in the ring ended, or did not answer within the process group's timeout."""


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """This rank's place in a ring: it receives from the rank after it and sends to the one before it."""

    group: dist.ProcessGroup

    @property
    def rank(self) -> int:
        """Of this process in the group."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return dist.get_world_size(self.group)

    def connect(self, device: torch.device) -> None:
        """Set the group up with all its ranks: NCCL must, before a step in which only some of them exchange rows."""
        if device.type == "cuda" and self.group not in _connected:
            dist.all_reduce(torch.zeros(1, device=device), group=self.group)
            _connected.add(self.group)

    def start(
        self,
        outgoing: Tensor,
        sent: Ranges,
        incoming: Tensor,
        received: Ranges,
        *,
        what: str,
        tag: int,
        distance: int = 1,
    ) -> Exchange:
        """Begin to send rows `sent` of `outgoing`, and to receive rows `received` of `incoming`.

        Args:
            outgoing: [L, ...] contiguous, left alone until the exchange is finished; `incoming` is like it.
            what: names the rows and the step in an error.
            tag: keeps exchanges apart that are under way at once.
            distance: how many places on the rank is that is received from; as many back is the one that is sent to.
        """
        to, source = (self.rank - distance) % self.size, (self.rank + distance) % self.size
        operations = [
            dist.P2POp(dist.isend, outgoing[start:stop], group=self.group, group_peer=to, tag=tag)
            for start, stop in sent
        ] + [
            dist.P2POp(dist.irecv, incoming[start:stop], group=self.group, group_peer=source, tag=tag)
            for start, stop in received
        ]
        peers = [("to", to)] * bool(sent) + [("from", source)] * bool(received)
        exchange = Exchange(self, what, peers, [])
        if operations:
            exchange.works.extend(exchange.guarded(dist.batch_isend_irecv, operations))
        return exchange


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Rows under way in both directions, with the ranks they go to and come from."""

    neighbours: Neighbours
    what: str
    peers: list[tuple[str, int]]
    works: list[Any]

    def finish(self) -> None:
        """Wait until all rows have arrived and left.

        Raises:
            LostPeerError: a neighbour is gone or silent.
        """
        for work in self.works:
            self.guarded(work.wait)

    def guarded(self, call: Any, *arguments: Any) -> Any:
        """`call(*arguments)`, with a lost neighbour named."""
        try:
            return call(*arguments)
        except RuntimeError as error:
            ring = self.neighbours
            whom = " and ".join(
                f"{way} context-parallel rank {peer} (process {dist.get_global_rank(ring.group, peer)})"
                for way, peer in self.peers
            )
            raise LostPeerError(
                f"Ring attention on context-parallel rank {ring.rank} (process {dist.get_rank()}) could not pass "
                f"{self.what} {whom}: a process ended, or did not answer within the timeout. Look for the first "
                f"error of that process. ({error})"
            ) from error
