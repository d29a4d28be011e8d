"""What a GPU holds beside tensors: communicators, the driver's context, and what the allocator loses to fragments.

Estimates, none of them measured here. A rehearsal counts none of it.
"""

from __future__ import annotations

from megatron_ultralong.config.sections import ParallelConfig

_CONTEXT = 600 * 2**20
"""CUDA's context with the kernels of PyTorch and its libraries loaded, as drivers of Hopper cards show it."""
_COMMUNICATOR = 256 * 2**20
"""A group's: NCCL's buffer of 4 MiB (NCCL_BUFFSIZE) in both directions on each of at most 32 channels."""
_FRAGMENTS = 0.04
"""Of the step's working memory; with expandable segments PyTorch's allocator loses little more than one tensor."""


def communication(parallel: ParallelConfig, data_parallel: int) -> int:
    """Bytes of NCCL's communicators, one a group of more than one rank, and of the context."""
    sizes = (
        parallel.tensor,
        parallel.ulysses,
        parallel.context // parallel.ulysses,
        parallel.context * data_parallel,
        parallel.pipeline,
    )
    return _CONTEXT + _COMMUNICATOR * sum(size > 1 for size in sizes)


def margin(peak: int) -> int:
    """Bytes that the allocator may lose beside a step's tensors."""
    return int(_FRAGMENTS * peak)
