"""Ranks for tests: eight processes over gloo, started once a file, that run calls of attention on request.

Whoever asks has the whole sequence; each rank of the first n cuts its share, attends, and hands back its part. So a
case costs what it computes, not what eight interpreters cost to start. Each of their groups has a thread that wakes a
hundred times a second as long as it stands, so they leave with the file.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.context_parallel.ring import ring_attention
from megatron_ultralong.context_parallel.ulysses import ulysses_attention
from tests.ranks import leave

SIZES = (2, 3, 4, 8)
GRIDS = ((2, 2), (3, 3), (4, 2), (4, 4), (8, 2), (8, 4), (8, 8))
"""Ranks in all, and of those the neighbours that exchange heads."""


WHOLE: dict[int, Any] = {}
"""In a rank: the group of the first so many ranks."""


class Ranks:
    """The processes; use as a context manager."""

    def __enter__(self) -> Ranks:
        self.folder = tempfile.TemporaryDirectory()
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["megatron_ultralong.context_parallel.ring"])
        pipes = [context.Pipe() for _ in range(max(SIZES))]
        self.pipes = [here for here, _ in pipes]
        self.processes = [
            context.Process(target=_serve, args=(rank, Path(self.folder.name) / "store", there), daemon=True)
            for rank, (_, there) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)
        self.folder.cleanup()

    def run(self, size: int, function: Callable[..., Any], *arguments: Any, ulysses: int = 1) -> list[Any]:
        """What `function(attend, rank, size, *arguments)` returns on each of `size` ranks, `attend` being theirs."""
        for pipe in self.pipes[:size]:
            pipe.send((size, ulysses, function, arguments))
        results = []
        for rank, pipe in enumerate(self.pipes[:size]):
            if not pipe.poll(60):
                raise TimeoutError(f"rank {rank} of {size} does not answer")
            results.append(pipe.recv())
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def attend(
        self, size: int, tensors: list[torch.Tensor], *, ulysses: int = 1, **arguments: Any
    ) -> list[torch.Tensor]:
        """The whole output, dq, dk and dv of `size` ranks; 1: of this process. `ulysses` of them exchange heads."""
        if size == 1:
            return with_gradients(lambda *qkv: ring_attention(*qkv, group=None, **arguments), *tensors)
        shares = self.run(size, attend_to_share, tensors, arguments, ulysses=ulysses)
        return [zigzag.unshard(parts) for parts in zip(*shares, strict=True)]


def attend_to_share(
    attend: Any, rank: int, size: int, tensors: list[torch.Tensor], arguments: dict[str, Any]
) -> list[torch.Tensor]:
    """A rank's part of the output, dq, dk and dv."""
    return with_gradients(functools.partial(attend, **arguments), *(zigzag.shard(x, rank, size) for x in tensors))


def with_gradients(attend: Any, q: Any, k: Any, v: Any, grad: Any) -> list[torch.Tensor]:
    """Output, dq, dk and dv of a call."""
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = attend(q, k, v)
    out.backward(grad)
    return [x.detach() for x in (out, q.grad, k.grad, v.grad)]


def flash_in_one_process(q_BLNH: torch.Tensor, k_BLKH: torch.Tensor, v_BLKH: torch.Tensor) -> torch.Tensor:
    """PyTorch's own causal flash attention, called plainly: what errors in bf16 are measured by."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BLKH, v_BLKH))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(
            1, 2
        )


def _grid(rank: int, size: int, ulysses: int) -> tuple[Any, Any]:
    """This rank's inner group of neighbours and its outer one; every process makes all groups in one order."""
    inner = [dist.new_group(range(o, o + ulysses)) for o in range(0, size, ulysses)]
    outer = [dist.new_group(range(i, size, ulysses)) for i in range(ulysses)]
    return (inner[rank // ulysses], outer[rank % ulysses]) if rank < size else (None, None)


def _serve(rank: int, store: Path, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), max(SIZES)), rank=rank, world_size=max(SIZES))
    WHOLE.update({size: dist.new_group(range(size)) for size in SIZES})
    grids = {(size, ulysses): _grid(rank, size, ulysses) for size, ulysses in GRIDS}
    while (asked := pipe.recv()) is not None:
        size, ulysses, function, arguments = asked
        try:
            attend = functools.partial(ring_attention, group=WHOLE[size])
            if ulysses > 1:
                inner, outer = grids[size, ulysses]
                attend = functools.partial(ulysses_attention, heads_group=inner, ring_group=outer)
            pipe.send(function(attend, rank, size, *arguments))
        except Exception as error:
            pipe.send(error)
    leave()
