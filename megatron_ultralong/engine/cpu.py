"""megatron-core on a CPU: what its unconditional CUDA calls mean where there is no GPU.

megatron-core asks for `torch.cuda.current_device()`, `device="cuda"`, `Tensor.cuda()` and CUDA generators in
many places. `activate` answers each with its CPU counterpart, for the whole process and for good; it is never
called in a run on a GPU, and importing this module changes nothing. The function mode costs a few
microseconds a torch call, and applies to the thread that called `activate`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_ultralong.engine import cpu_products

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_mode: TorchFunctionMode | None = None


def _is_cuda(value: Any) -> bool:
    return (isinstance(value, str) and value.startswith("cuda")) or (
        isinstance(value, torch.device) and value.type == "cuda"
    )


class _CudaMeansCpu(TorchFunctionMode):
    """Turns cuda devices into the CPU, and drops what only makes sense beside a GPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # megatron-core's optimizers and clip_grads compare this string with the CUDA types' names.
            return func(*args).replace("torch.", "torch.cuda.")
        if func is torch.Tensor.pin_memory:
            return args[0]
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": _CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        return func(*args, **(kwargs or {}))


class _Stream:
    """In the place of a CUDA stream: what was asked of a CPU is done when the call returns."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def is_active() -> bool:
    """Whether this process runs megatron-core on its CPU."""
    return _mode is not None


def activate() -> None:
    """Make megatron-core run on the CPU from now on, in this process and thread. A second call does nothing."""
    global _mode
    if _mode is not None:
        return
    from megatron_ultralong.engine import mcore

    def get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    replacements: dict[str, Callable[..., Any]] = {
        "current_device": lambda: _CPU,
        "synchronize": lambda device=None: None,
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "current_stream": lambda device=None: _Stream(),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
    }
    for name, function in replacements.items():
        setattr(torch.cuda, name, function)
    mcore.megatron_random._get_cuda_rng_state = get_rng_state
    mcore.megatron_random._set_cuda_rng_state = set_rng_state
    # It warns whenever its CUDA generator's fork moves the CPU's; here the two are one.
    logging.getLogger(mcore.megatron_random.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
    cpu_products.ensure_fast()
    _mode = _CudaMeansCpu()
    _mode.__enter__()
    logger.info("no GPU in use: megatron-core runs on the CPU, over gloo")
