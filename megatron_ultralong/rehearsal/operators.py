"""Counting what a device would launch: operators, messages and waits that PyTorch dispatches.

Under `counting` the code takes a GPU's path, or a CPU's, on fake tensors: shapes and dtypes are right, nothing is
computed. What does not launch is left out: views, and memory that is asked for. What an operator launches inside is its
own affair. `Operators` alone counts a real step just so, which is how the two are compared.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ultralong.context_parallel import kernel_choice, kernels_cpu, kernels_gpu
from megatron_ultralong.engine import device
from megatron_ultralong.rehearsal.collectives import Message, message

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "set_", "_unsafe_view")
ATTENTION = ("_flash_attention", "_scaled_dot_product_cudnn", "_scaled_dot_product_flash")
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
"""Matrix products, and which argument is the first matrix."""
_VALUES = ("_local_scalar_dense", "item", "equal", "nonzero", "is_nonzero")
_BETWEEN = ("/cpu.py", "/measured_memory.py")
"""Files whose modes pass an operator on."""
_ASSUMED = {torch.bool: True}


class Operators(TorchDispatchMode):
    """Counts operators by name, in all and by what `part` says at the time; of fake tensors, answers values by 1.

    Attributes:
        part: called at each operator; the key under which it is counted.
        by_part: operators by name.
        products: operations of matrix products, by part; two a multiply-add.
        messages: collectives and messages, by part.
        synchronisations: functions that waited for the device, in order.
        last: the part of the last operator, be it one that failed.
    """

    active: Operators | None = None

    def __init__(self, part: Callable[[], Any] = lambda: "") -> None:
        super().__init__()
        Operators.active = self
        self.part = part
        self.last: Any = None
        self.by_part: dict[Any, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.products: collections.Counter[Any] = collections.Counter()
        self.messages: dict[Any, collections.Counter[Message]] = collections.defaultdict(collections.Counter)
        self.synchronisations: list[str] = []

    def clear(self) -> None:
        """Begin anew."""
        for counts in (self.by_part, self.products, self.messages, self.synchronisations):
            counts.clear()  # type: ignore[attr-defined]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in _VALUES:
            self.synchronisations.append(asker())
            if (fake := _fake(args)) is None:
                return func(*args, **kwargs)
            if name != "_local_scalar_dense":
                raise NotImplementedError(f"{asker()} asks for {name} of a tensor, of which nothing can be assumed")
            return _ASSUMED.get(fake.dtype, 1)
        part = self.last = self.part()
        if not func.is_view and name not in ALLOCATIONS and func.namespace not in ("prim", "profiler"):
            self.by_part[part][name if func.namespace == "aten" else f"{func.namespace}.{name}"] += 1
        if func.namespace == "c10d":
            sent = message(name, args)
            if sent is not None:
                self.messages[part][sent] += 1
            if name.endswith("_coalesced_") and _fake(args) is not None:  # fake tensors know nothing of these
                return FakeWork().boxed()
        result = func(*args, **kwargs)
        if name in _PRODUCTS:
            self.products[part] += 2 * result.numel() * args[_PRODUCTS[name]].shape[-1]
        return result

    @classmethod
    def count(cls, name: str) -> None:
        """One more, of a kernel that only a GPU has."""
        assert cls.active is not None
        cls.active.by_part[cls.active.part()][name] += 1

    @property
    def counts(self) -> collections.Counter[str]:
        """By name, over all parts."""
        return sum(self.by_part.values(), collections.Counter())


def _fake(args: Any) -> FakeTensor | None:
    """The first fake tensor among an operator's arguments."""
    for value in args:
        if isinstance(value, FakeTensor):
            return value
        if isinstance(value, list | tuple) and (found := _fake(value)) is not None:
            return found
    return None


def asker() -> str:
    """Which function, of this project or megatron-core, is running: file and name."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/megatron" in file and not file.endswith(_BETWEEN) and "/rehearsal/" not in file:
            return f"{Path(file).name}: {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


def own(counts: collections.Counter[str]) -> int:
    """Operators beside attention's kernels and messages."""
    return sum(n for name, n in counts.items() if not name.startswith((*ATTENTION, "c10d.")))


@contextlib.contextmanager
def faked(capability: tuple[int, int] | None = (9, 0)) -> Iterator[None]:
    """Within it, tensors are fake and take the path of a GPU of this compute capability; None: of a CPU."""
    caches = (kernel_choice.choose, kernels_gpu._bounds, kernels_cpu._documents)
    for cache in caches:
        cache.cache_clear()
    try:
        assumed = contextlib.nullcontext() if capability is None else device.assume_gpu(capability)
        with assumed, FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        for cache in caches:
            cache.cache_clear()


@contextlib.contextmanager
def counting(capability: tuple[int, int] | None = (9, 0)) -> Iterator[Operators]:
    """`faked`, and counted."""
    with faked(capability), Operators() as operators:
        yield operators
