"""The job's grid as one rank sees it: its place, and what its groups are called."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.distributed as dist

from megatron_ultralong.engine import mcore


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Where a rank stands in the job's grid; each counts from 0."""

    tensor: int
    context: int
    data: int
    pipeline: int


def coordinates() -> Coordinates:
    """Of this process."""
    state = mcore.parallel_state
    return Coordinates(
        tensor=state.get_tensor_model_parallel_rank(),
        context=state.get_context_parallel_rank(),
        data=state.get_data_parallel_rank(),
        pipeline=state.get_pipeline_model_parallel_rank(),
    )


def names_of_groups(world_size: int) -> dict[tuple[int, ...], str]:
    """What groups of more than one rank are called; several axes may be one group."""
    state = mcore.parallel_state
    found: dict[tuple[int, ...], str] = {}

    def add(name: str, group: Any, joined: bool) -> None:
        ranks = tuple(dist.get_process_group_ranks(group))
        if ranks not in found or joined:
            found[ranks] = ", ".join(filter(None, (found.get(ranks), name)))

    for name, group in (
        ("TP", state.get_tensor_model_parallel_group()),
        ("CP", state.get_context_parallel_group()),
        ("PP", state.get_pipeline_model_parallel_group()),
        ("DP", state.get_data_parallel_group()),
        ("DP x CP", state.get_data_parallel_group(with_context_parallel=True)),
    ):
        add(name, group, True)
    levels = state.get_hierarchical_context_parallel_groups(check_initialized=False) or ()
    for name, group in zip(("ulysses", "ring"), levels, strict=False):
        add(name, group, False)
    add("TP x PP", state.get_model_parallel_group(), False)
    embedding = state.get_embedding_group(check_initialized=False)
    if embedding is not None:
        add("first and last stage", embedding, False)
    found.setdefault(tuple(range(world_size)), "all")
    return {ranks: "itself" if len(ranks) == 1 else name for ranks, name in found.items()}
