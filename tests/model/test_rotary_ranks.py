"""The kinds whose frequencies depend on the sequence's length, over a context-parallel group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.model.rotary import Rotary
from megatron_ultralong.rope.scaling import RopeScaling
from tests.ranks import leave

LONGROPE: dict[str, Any] = {
    "kind": "longrope",
    "short_factors": tuple(1 + i / 50 for i in range(32)),
    "long_factors": tuple(1.5**i for i in range(32)),
}


def longest_on_two_ranks(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    for rope in (
        RopeScaling(base=1e4, factor=2.0, original_length=48, **LONGROPE),
        RopeScaling(base=1e4, kind="dynamic-ntk", factor=2.0, original_length=32),
    ):
        for length in (32, 64):
            positions = torch.cat([torch.arange(*span) for span in zigzag.spans(length, rank, 2)])
            share = Rotary(rope, 64, group=dist.group.WORLD)(positions[None])
            assert torch.equal(share, Rotary(rope, 64)(torch.arange(length)[None])[positions])
    leave()


@pytest.mark.gloo
def test_every_rank_takes_the_frequencies_of_the_whole_sequences_length(tmp_path: Path) -> None:
    mp.spawn(longest_on_two_ranks, (str(tmp_path / "store"),), nprocs=2)
