"""How a rank of a test leaves its process group."""

import gc

import torch.distributed as dist


def leave() -> None:
    """Destroy every group, those in cycles too: a thread of gloo's that lives on can abort the process as it ends."""
    dist.destroy_process_group()
    gc.collect()
