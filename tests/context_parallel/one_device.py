"""A ring whose ranks are threads of one process on one device: the ring's own code, with rows passed by hand.

What is not there is the process group; plans, kernels, folding, buffers and travelling gradients are the real ones. All
ranks compute on the device's one default stream, so what a rank passes on is complete before another uses it.
"""

import concurrent.futures
import dataclasses
import queue

import torch

from megatron_ultralong.context_parallel import rectangles, ring, zigzag

SECONDS = 20  # after which a row that never comes is an error


@dataclasses.dataclass
class Neighbour:
    """In the place of exchange.Neighbours: a rank's mailboxes, which all ranks share."""

    rank: int
    size: int
    boxes: dict

    def start(self, outgoing, sent, incoming, received, *, what, tag):
        to, source = (self.rank - 1) % self.size, (self.rank + 1) % self.size
        for start, stop in sent:
            self.boxes[self.rank, to, tag].put(outgoing[start:stop].clone())
        return Delivery(self.boxes[source, self.rank, tag], incoming, received)


@dataclasses.dataclass
class Delivery:
    """In the place of exchange.Exchange."""

    box: queue.Queue
    incoming: torch.Tensor
    received: rectangles.Ranges

    def finish(self):
        for start, stop in self.received:
            self.incoming[start:stop] = self.box.get(timeout=SECONDS)


def attend(q_BSNH, k_BSKH, v_BSKH, grad_BSNH, *, size, bounds=None, causal=True, scale):
    """out, dq, dk and dv over the whole sequence, from a ring of `size` threads."""
    S = q_BSNH.shape[1]
    boxes = {(a, b, tag): queue.Queue() for a in range(size) for b in range(size) for tag in (1, 2)}

    def run(rank):
        plan = rectangles.plan(S, rank, size, bounds, causal)
        call = ring._Call(plan, Neighbour(rank, size, boxes) if size > 1 else None, causal, scale)
        q, k, v, grad = (zigzag.shard(x, rank, size) for x in (q_BSNH, k_BSKH, v_BSKH, grad_BSNH))
        out, lse = ring._attend(q, k, v, call)
        return out, *ring._differentiate((grad, q, out, lse), k, v, call)

    with concurrent.futures.ThreadPoolExecutor(size) as pool:
        shares = list(pool.map(run, range(size)))
    assert all(box.empty() for box in boxes.values())  # all that was sent was asked for
    return [zigzag.unshard(parts) for parts in zip(*shares, strict=True)]
