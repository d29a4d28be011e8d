"""What goes around the ring: keys and values, and behind them in backward their gradients, each in two buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ultralong.context_parallel import online_softmax
from megatron_ultralong.context_parallel.rectangles import Plan, Ranges
from megatron_ultralong.context_parallel.ring_exchange import Exchange, Neighbours

_KEYS, _GRADIENTS = 1, 2  # tags


class Travelling:
    """What goes around the ring: two buffers [L, 2, B, K, H], rows first so that ranges of rows are contiguous.

    The buffer of step s is s mod 2; while it is used and sent on, the next step's arrives in the other.
    """

    def __init__(self, plan: Plan, neighbours: Neighbours, k_BLKH: Tensor, dtype: torch.dtype, used: bool) -> None:
        self.neighbours, self.steps = neighbours, plan.steps
        B, L, K, H = k_BLKH.shape
        rows = L if used else 0
        self.buffers = tuple(torch.empty(rows, 2, B, K, H, dtype=dtype, device=k_BLKH.device) for _ in range(2))
        self.under_way: Exchange | None = None

    def _start(self, number: int, sent: Ranges, received: Ranges, what: str, tag: int) -> None:
        here, there = self.buffers[number % 2], self.buffers[(number + 1) % 2]
        what = f"{what} after step {number + 1} of {len(self.steps)}"
        self.under_way = self.neighbours.start(here, sent, there, received, what=what, tag=tag)

    def _finish(self) -> None:
        if self.under_way is not None:
            self.under_way.finish()
            self.under_way = None


class TravellingKeys(Travelling):
    """Keys and values; this rank's own lie in buffer 0 until they have left."""

    def __init__(self, plan: Plan, neighbours: Neighbours, k_BLKH: Tensor, v_BLKH: Tensor) -> None:
        super().__init__(plan, neighbours, k_BLKH, k_BLKH.dtype, plan.keys_travel)
        for start, stop in self.steps[0].keys_out:
            self.buffers[0][start:stop, 0] = k_BLKH[:, start:stop].transpose(0, 1)
            self.buffers[0][start:stop, 1] = v_BLKH[:, start:stop].transpose(0, 1)
        self._pass_on(0)

    def arrive(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, K, H] of a step, which are being passed on meanwhile.

        Only rows that the step's blocks need hold anything.
        """
        self._finish()
        self._pass_on(number)
        k_LBKH, v_LBKH = self.buffers[number % 2].unbind(1)
        return k_LBKH.transpose(0, 1), v_LBKH.transpose(0, 1)

    def leave(self) -> None:
        """Wait until the last rows have left, so that the buffers may go."""
        self._finish()

    def _pass_on(self, number: int) -> None:
        step = self.steps[number]
        self._start(number, step.keys_out, step.keys_in, "keys and values", _KEYS)


class TravellingGradients(Travelling):
    """dK and dV, in fp32 (fp64): they follow the keys, and each rank adds its part and passes them on."""

    def __init__(self, plan: Plan, neighbours: Neighbours, k_BLKH: Tensor, dtype: torch.dtype) -> None:
        super().__init__(plan, neighbours, k_BLKH, dtype, plan.gradients_travel)

    def add(self, number: int, found: list[tuple[slice, Tensor, Tensor]]) -> None:
        """Add what this rank has found for rows of the share of step `number`, and pass the share on."""
        self._finish()
        step, here = self.steps[number], self.buffers[number % 2]
        for start, stop in step.fresh:
            here[start:stop] = 0
        for rows, dk_BLKH, dv_BLKH in found:
            online_softmax.add(here[rows, 0].transpose(0, 1), dk_BLKH)
            online_softmax.add(here[rows, 1].transpose(0, 1), dv_BLKH)
        self._start(number, step.gradients_out, step.gradients_in, "gradients of keys and values", _GRADIENTS)

    def come_home(self, dk_BLKH: Tensor, dv_BLKH: Tensor) -> None:
        """Add what the others found for this rank's own keys and values."""
        self._finish()
        home = self.buffers[len(self.steps) % 2]
        for start, stop in self.steps[-1].gradients_in:
            online_softmax.add(dk_BLKH[:, start:stop], home[start:stop, 0].transpose(0, 1))
            online_softmax.add(dv_BLKH[:, start:stop], home[start:stop, 1].transpose(0, 1))
