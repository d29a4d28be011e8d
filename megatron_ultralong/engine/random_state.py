"""The random states of every rank, as one tensor of a checkpoint: row r is rank r's.

Nothing draws from them today once the weights exist: dropout is 0, and the order of samples is a function of the
seed. They are saved so that a resumed run stays the same run the day something does draw. Another layout has other
ranks; it starts from the seed.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.engine import mcore


def _states() -> list[Tensor]:
    """PyTorch's CPU generator, this device's, and megatron-core's named ones, in one order; uint8 on the CPU."""
    named = mcore.megatron_random.get_cuda_rng_tracker().get_states()
    states = [torch.get_rng_state(), torch.cuda.get_rng_state(), *(named[name] for name in sorted(named))]
    return [state.cpu() for state in states]


def sharded() -> Tensor:
    """This rank's row of the checkpoint's tensor `random` (megatron-core's ShardedTensor)."""
    row = torch.cat(_states())
    place = (0, dist.get_rank(), dist.get_world_size())
    return mcore.ShardedTensor.from_rank_offsets("random", row, place, prepend_axis_num=1)


def restore(row: Tensor) -> None:
    """Put back what `sharded` held on this rank, under the same layout."""
    # A generator takes a state as a block of memory, and dies of one that is not aligned: copies, not views.
    parts = [part.clone() for part in row.cpu().split([len(state) for state in _states()])]
    torch.set_rng_state(parts[0])
    torch.cuda.set_rng_state(parts[1])
    tracker = mcore.megatron_random.get_cuda_rng_tracker()
    tracker.set_states(dict(zip(sorted(tracker.get_states()), parts[2:], strict=True)))
