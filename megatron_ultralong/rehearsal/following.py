"""Following what no module is: attention's blocks, the ring's buffers, buffers of others, copies to the host."""

from __future__ import annotations

import collections
import contextlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from megatron_ultralong.context_parallel import kernels, ring_travel
from megatron_ultralong.engine import host_adam, host_link, mcore
from megatron_ultralong.engine.replacing import replaced
from megatron_ultralong.model import offload
from megatron_ultralong.planning.flops import causal_pairs
from megatron_ultralong.rehearsal import ledger
from megatron_ultralong.rehearsal.places import Place, Places


@contextlib.contextmanager
def followed(places: Places, attention: collections.Counter[Place], gpu: bool) -> Iterator[None]:
    """Name what no module is, and count what attention computes, whichever kernel does."""

    def counted(function: Any, each: int) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            names = inspect.signature(function).bind(*arguments, **keywords).arguments
            attention[places.now()] += each * _products(**names)
            return function(*arguments, **keywords)

        return call

    buffers = mcore.mcore_utils.GlobalMemoryBuffer
    hosts = [
        (offload._Store, "put", places.around(ledger.HOST, offload._Store.put)),
        (host_link, "on_host", places.around(ledger.HOST, host_link.on_host)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (kernels, "forward", counted(kernels.forward, 4)),
            (kernels, "backward", counted(kernels.backward, 10)),
            (ring_travel.Travelling, "__init__", places.around(ledger.RING, ring_travel.Travelling.__init__)),
            (buffers, "get_tensor", places.around(ledger.GATHERED, buffers.get_tensor)),
            (host_adam.HostAdam, "step", places.around(ledger.HOST_ADAM, host_adam.HostAdam.step)),
            *(hosts if gpu else []),
        ):
            stack.enter_context(replaced(owner, name, value))
        yield


def _products(
    q_BLNH: torch.Tensor, k_BLKH: torch.Tensor, causal: bool, bounds: tuple[int, ...] | None = None, **_: Any
) -> int:
    """Pairs of a query and a key that a block computes, times heads and channels."""
    B, rows, N, H = q_BLNH.shape
    lengths = [rows] if bounds is None else [stop - start for start, stop in itertools.pairwise(bounds)]
    if causal:
        pairs = causal_pairs(lengths)
    else:
        pairs = rows * k_BLKH.shape[1] if bounds is None else sum(length**2 for length in lengths)
    return B * N * H * pairs
