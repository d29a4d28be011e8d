"""The same bytes on every run of a GPU: what PyTorch, cuBLAS, cuDNN, NCCL and Transformer Engine must be told.

PyTorch's and flash-attn's flash kernels order the additions of their backward where PyTorch is asked for determinism,
cuDNN's attention has no such form and is passed over (`context_parallel.kernels`), and NCCL's reductions have one
order where they are not made in the switch (NVLS). Nothing of it concerns a CPU, which is deterministic as it is.
"""

from __future__ import annotations

import os

import torch

ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # workspaces of its own for each stream, so that none changes the order
    "NCCL_ALGO": "^NVLS",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}


def require() -> None:
    """Ask for determinism, before the first CUDA call of this process; a variable that the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it would fill each new tensor, for debugging
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
