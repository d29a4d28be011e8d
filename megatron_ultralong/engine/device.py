"""Which device a process computes on, decided once."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from typing import Literal

import torch

from megatron_ultralong.engine import cpu
from megatron_ultralong.errors import UserError

_highest_before = 0
_assumed: tuple[int, int] | None = None


def has_gpu() -> bool:
    """Whether PyTorch sees a GPU that this process may use."""
    return torch.cuda.is_available() and not cpu.is_active()


def gpu_capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of the GPU whose code path tensors on `device` take; None: that of a CPU.

    What is tuned for the one or the other asks here and nowhere else.
    """
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else _assumed


@contextlib.contextmanager
def assume_gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Within it, tensors on the CPU take the path of such a GPU: for counting and rehearsing with fake tensors."""
    global _assumed
    before, _assumed = _assumed, capability
    try:
        yield
    finally:
        _assumed = before


def current() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on `device`; on a GPU by way of pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, copy=_assumed is not None)  # an assumed GPU's memory is another than the host's


def use(device: Literal["auto", "cpu", "gpu"] = "auto") -> torch.device:
    """Choose this process's device: its own GPU (by LOCAL_RANK), or the CPU with the CPU backend switched on.

    Raises:
        UserError: "gpu" where PyTorch sees none.
    """
    available = has_gpu()
    if device == "gpu" and not available:
        raise UserError('parallel.device is "gpu", but PyTorch sees no GPU here; set it to "cpu" or "auto".')
    if device == "cpu" or not available:
        cpu.activate()
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def name(device: torch.device) -> str:
    """What the maker calls it ("NVIDIA H100 80GB HBM3"), or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most so far: of the GPU's memory, or in all on a CPU."""
    if device.type == "cuda":
        return max(_highest_before, torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def restart_peak_memory(device: torch.device) -> None:
    """Let PyTorch's counter of a GPU's highest memory begin again; `peak_memory` keeps what it said before."""
    global _highest_before
    _highest_before = peak_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
