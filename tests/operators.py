"""Counting what a GPU would launch: the operators that PyTorch dispatches, on tensors that hold no values.

Under `counting` the code takes a GPU's path on fake tensors: shapes and dtypes are right, nothing is computed. What
does not launch is left out: views, and memory that is asked for. What an operator launches inside is its own affair.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from pathlib import Path

import torch
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ultralong.context_parallel import kernel_choice, kernels_gpu
from megatron_ultralong.engine import device

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "set_", "_unsafe_view")
ATTENTION = ("_flash_attention", "_scaled_dot_product_cudnn")
ASSUMED = {torch.bool: True}


class Operators(TorchDispatchMode):
    """Counts operators by name, in all and by whatever `part` says at the time; answers a request for a value by 1."""

    part = ""
    active: Operators | None = None

    def __init__(self) -> None:
        super().__init__()
        Operators.active = self
        self.by_part: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.synchronisations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "equal", "nonzero", "is_nonzero"):
            self.synchronisations.append(asker())
            assert name == "_local_scalar_dense", name  # a value that nothing can be assumed of
            return ASSUMED.get(args[0].dtype, 1)
        if not func.is_view and name not in ALLOCATIONS and func.namespace not in ("prim", "profiler"):
            self.by_part[self.part][name if func.namespace == "aten" else f"{func.namespace}.{name}"] += 1
        if func.namespace == "c10d" and name.endswith("_coalesced_"):  # fake tensors know nothing of these
            return FakeWork().boxed()
        return func(*args, **(kwargs or {}))

    @classmethod
    def count(cls, name: str) -> None:
        """One more, of a kernel that only a GPU has."""
        assert cls.active is not None
        cls.active.by_part[cls.active.part][name] += 1

    @property
    def counts(self) -> collections.Counter[str]:
        """By name, over all parts."""
        return sum(self.by_part.values(), collections.Counter())


def asker() -> str:
    """Which function, of this project or megatron-core, is running: file and name."""
    frame = sys._getframe(1)
    while frame is not None and ("/megatron" not in (file := frame.f_code.co_filename) or file.endswith("/cpu.py")):
        frame = frame.f_back
    assert frame is not None
    return f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"


def own(counts: collections.Counter[str]) -> int:
    """Operators beside attention's kernels and messages."""
    return sum(n for name, n in counts.items() if not name.startswith((*ATTENTION, "c10d.")))


@contextlib.contextmanager
def counting(capability=(9, 0)):
    """Within it, tensors are fake and take the path of a GPU of this compute capability."""
    caches = (kernel_choice.choose, kernels_gpu._bounds)
    for cache in caches:
        cache.cache_clear()
    try:
        with device.assume_gpu(capability), FakeTensorMode(allow_non_fake_inputs=True), Operators() as operators:
            yield operators
    finally:
        for cache in caches:
            cache.cache_clear()
