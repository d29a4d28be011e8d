"""What a rehearsal assumes: what tensors without values cannot say, and what a GPU does otherwise than a CPU.

Every label counts, sums are 1 (so that the step is taken), all ranks say the same, checks of generator states pass. Of
a GPU: RMSNorm is PyTorch's fused operator, SwiGLU megatron-core's compiled one, a rotation Triton's kernel; a copy to
the host waits. Numpy's
arrays and what is read into them are the host's and keep their values.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.context_parallel import kernels_cpu
from megatron_ultralong.data.reading.dataset import Sample
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine import groups, mcore
from megatron_ultralong.engine.replacing import replaced
from megatron_ultralong.model import rotary
from megatron_ultralong.rehearsal.operators import Operators, asker
from megatron_ultralong.training import step


class Samples:
    """In the place of the blend: samples with a label everywhere, and documents of one length."""

    first = 0

    def __init__(self, length: int, document: int) -> None:
        self.bounds = np.array([*range(0, length, document), length], dtype=np.int32)

    def read(self, sample: int, spans: Any) -> Sample:
        """The same for every sample."""
        del sample
        held = np.concatenate([np.arange(*span) for span in spans])
        return Sample(held % 7, held % 7, np.ones(len(held), np.float32), held, self.bounds)


@contextlib.contextmanager
def rank_of(config: RunConfig, world_size: int, rank: int) -> Iterator[None]:
    """This process as one rank of a job of `world_size`, whose other ranks do not exist."""
    engine_device.use("cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        groups.lay_grid(config.parallel, config.train.seed, gloo=False)
        yield
    finally:
        groups.finalize()


class _FusedNorm(torch.autograd.Function):
    """F.rms_norm as on a GPU: an operator each way, which keeps its input and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        Operators.count("_fused_rms_norm")
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        Operators.count("_fused_rms_norm_backward")
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _compiled(name: str, shape_of: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """In the place of a function that torch.compile makes one kernel of on a GPU."""

    def call(*tensors: Any) -> torch.Tensor:
        Operators.count(name)
        return shape_of(*tensors)

    return call


def _waits(to_host: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A copy to the host, which on a GPU waits for it; what lies on the host has values."""

    def call(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            assert Operators.active is not None
            Operators.active.synchronisations.append(asker())
        return to_host(tensor)

    return call


def _with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the host, whose tensors keep their values and are not counted."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with _disable_current_modes():
            return function(*arguments)

    return call


def _alike(found: list[Any], own: Any, group: Any = None) -> None:
    """As if every rank had said the same."""
    found[:] = [own] * len(found)


def _finite(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """The step's report, of a loss that can be counted."""

    def call(*arguments: Any) -> tuple[float, int, int, bool, tuple[()]]:
        reduce(*arguments)
        return 1.0, 1, 1, True, ()

    return call


@contextlib.contextmanager
def assumed(gpu: bool) -> Iterator[None]:
    """What is said above, within it."""
    optimizer = functools.partial(mcore.get_megatron_optimizer, use_gloo_process_groups=False)
    places: list[tuple[Any, str, Any]] = [
        (mcore, "get_megatron_optimizer", optimizer),
        (mcore.megatron_random.CudaRNGStatesTracker, "fork", lambda *_: contextlib.nullcontext()),
        (dist, "all_gather_object", _alike),
        (torch, "from_numpy", _with_values(torch.from_numpy)),
        (torch.Tensor, "numpy", _with_values(torch.Tensor.numpy)),
        (kernels_cpu, "_batch", _with_values(kernels_cpu._batch)),
        (kernels_cpu, "_triangle", _with_values(kernels_cpu._triangle)),
        (torch.nn.Module, "to", lambda self, *_: self),  # the parameters are there, in their precision, already
        (torch.nn.Module, "bfloat16", lambda self: self),
        (step, "_reduce", _finite(step._reduce)),
    ]
    if gpu:
        swiglu = mcore.fused_bias_swiglu
        places += [
            (torch.nn.functional, "rms_norm", lambda x, shape, weight=None, eps=None: _FusedNorm.apply(x, weight)),
            (swiglu, "swiglu", _compiled("swiglu", lambda y: y.new_empty((*y.shape[:-1], y.shape[-1] // 2)))),
            (swiglu, "swiglu_back", _compiled("swiglu_back", lambda g, y: torch.empty_like(y))),
            (rotary, "_rotated", _compiled("rotate", lambda heads, *_: heads.new_empty(heads.shape))),
            (torch.Tensor, "cpu", _waits(torch.Tensor.cpu)),
        ]
    with contextlib.ExitStack() as stack:
        for place, name, value in places:
            stack.enter_context(replaced(place, name, value))
        yield
