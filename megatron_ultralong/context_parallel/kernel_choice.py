"""Which kernel computes a block: the fastest that takes the tensors and has passed its check, or the one asked for.

The kernels are private operators of PyTorch and of flash-attn, which may change under us. So on a GPU none is used
before `kernel_check.problem` has compared it with plain matrix products, forward and backward, once for each kind of
heads; one that fails is passed over with a warning. Plain products are the last resort: slow, and never wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.context_parallel import kernel_check, kernels_cpu, kernels_gpu, kernels_plain
from megatron_ultralong.engine.device import gpu_capability
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

Name = Literal["auto", "cudnn", "flash2", "flash3", "torch"]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A pair of functions as `kernels.forward` and `kernels.backward`.

    Attributes:
        name: as parallel.kernel calls it; "plain" is none of its values.
        title: as the log calls it.
        documents: it takes bounds of documents.
    """

    name: str
    title: str
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    documents: bool = True


@dataclasses.dataclass(frozen=True)
class Heads:
    """A kind of tensors: where they lie, and one rank's heads."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int


PLAIN = Kernel("plain", "plain matrix products", kernels_plain.forward, kernels_plain.backward)
CPU = Kernel("torch", "PyTorch's flash kernel for CPUs", kernels_cpu.forward, kernels_cpu.backward)
GPU = (  # the fastest first
    Kernel("flash3", "flash-attn 3", kernels_gpu.flash_attn_3_forward, kernels_gpu.flash_attn_3_backward),
    Kernel("cudnn", "cuDNN's kernel", kernels_gpu.cudnn_forward, kernels_gpu.cudnn_backward, documents=False),
    Kernel("flash2", "flash-attn 2", kernels_gpu.flash_attn_2_forward, kernels_gpu.flash_attn_2_backward),
    Kernel("torch", "PyTorch's flash kernel", kernels_gpu.torch_flash_forward, kernels_gpu.torch_flash_backward),
)

_wanted: Name = "auto"
_verdicts: dict[tuple[Kernel, Heads], str | None] = {}


def settle(name: Name, heads: Heads) -> None:
    """At the start of a run: prefer kernel `name`, and on a GPU check all that may be chosen, alike on all ranks.

    Raises:
        UserError: a GPU's kernel is asked for where there is none.
    """
    if gpu_capability(heads.device) is None:
        if name not in ("auto", CPU.name):
            raise UserError(f'parallel.kernel is "{name}", which needs a GPU, and this run has none; set it to "auto".')
        return
    use(name)
    everywhere: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, verify(heads))
    for rank, failed in enumerate(everywhere):
        for kernel, problem in failed.items():
            logger.warning("Attention kernel %r is passed over, for on rank %d %s.", kernel, rank, problem)
        pass_over(failed, heads)


def use(name: Name) -> None:
    """Prefer a kernel from now on, where it takes the tensors and passes its check; "auto": the fastest that does."""
    global _wanted
    _wanted = name
    choose.cache_clear()


def pass_over(failed: dict[str, str], heads: Heads) -> None:
    """Use none of these kernels for such heads, whatever they did here: another rank's failed, by name and reason."""
    for kernel in GPU:
        if kernel.name in failed:
            _verdicts[kernel, heads] = failed[kernel.name]
    choose.cache_clear()


def verify(heads: Heads) -> dict[str, str]:
    """Check every kernel that could be chosen for such heads on a GPU.

    Returns:
        Those that failed, by name, and how.
    """
    tried = [kernel for kernel in _offered(heads) if kernel is not PLAIN and any(_uses(kernel, heads))]
    return {kernel.name: problem for kernel in tried if (problem := _verdict(kernel, heads)) is not None}


def _uses(kernel: Kernel, heads: Heads) -> list[bool]:
    """Whether it would take: any block; documents; either way deterministically."""
    return [_takes(kernel, heads, documents, atomics) for documents in (False, True) for atomics in (False, True)]


@functools.cache
def choose(heads: Heads, documents: bool, is_backward: bool, deterministic: bool) -> Kernel:
    """The kernel for such a block; logged when it is chosen."""
    kernel = next(
        kernel
        for kernel in _offered(heads)
        if _takes(kernel, heads, documents, is_backward and deterministic) and _verdict(kernel, heads) is None
    )
    way, level = ("backward" if is_backward else "forward"), (logging.WARNING if kernel is PLAIN else logging.INFO)
    logger.log(
        level,
        "Attention %s%s: %s (%s, %s, head dim %d)%s.",
        *(way, " within documents" if documents else "", kernel.title, heads.device.type, heads.dtype, heads.head_dim),
        ", which is slow; on a GPU it is fast in bf16 alone" if kernel is PLAIN else "",
    )
    return kernel


def _offered(heads: Heads) -> list[Kernel]:
    """What there is for such tensors, in the order in which it is wanted."""
    capability = gpu_capability(heads.device)
    if capability is None:
        return [CPU]
    if heads.dtype in (torch.float32, torch.float64):
        return [PLAIN]
    if capability < (8, 0):
        raise UserError(
            f"Attention on a GPU needs compute capability 8.0 (A100) or newer, and this one has {capability}."
        )
    if heads.head_dim % 8 or heads.head_dim > 256:
        raise UserError(
            f"Attention on a GPU needs heads of at most 256 channels, a multiple of 8, and these have {heads.head_dim}."
        )
    return [*sorted(GPU, key=lambda kernel: kernel.name != _wanted), PLAIN]


def _takes(kernel: Kernel, heads: Heads, documents: bool, deterministic_backward: bool) -> bool:
    """Whether it computes such blocks on this device."""
    capability, small = gpu_capability(heads.device), heads.head_dim <= 128
    if capability is None or kernel is PLAIN:
        return True
    if documents and not kernel.documents:
        return False
    if kernel.name == "flash3":
        fits = capability[0] == 9 and (small or not deterministic_backward)
        return fits and kernels_gpu.flash_attn(3) is not None
    if kernel.name == "cudnn":
        return capability >= (9, 0) and small and not deterministic_backward
    assert kernel.name in ("torch", "flash2"), kernel.name
    return kernel.name == "torch" or kernels_gpu.flash_attn(2) is not None


def _verdict(kernel: Kernel, heads: Heads) -> str | None:
    """Why it is not used, None: it is good. Found once; plain products need none, nor what holds no values."""
    if kernel is PLAIN or heads.device.type == "cpu":
        return None
    if (kernel, heads) not in _verdicts:
        _verdicts[kernel, heads] = kernel_check.problem(
            kernel.forward,
            kernel.backward,
            heads=(heads.heads, heads.kv_heads),
            head_dim=heads.head_dim,
            dtype=heads.dtype,
            device=heads.device,
            documents=kernel.documents,
        )
    return _verdicts[kernel, heads]
