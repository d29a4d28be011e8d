"""What a rank sends: torch.distributed's operators, as PyTorch dispatches them, to kind, group and bytes.

Bytes are those of the whole buffer that the collective is about: what is reduced or sent, what is gathered or
scattered in all. How much of it passes a link follows from the group's size and the algorithm.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "alltoall_base_": "all-to-all",
    "alltoall_": "all-to-all",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
    "barrier": "barrier",
}


@dataclasses.dataclass(frozen=True)
class Message:
    """One call of a collective, or one message.

    Attributes:
        kind: as KINDS calls it.
        group: global ranks of its group.
        bytes: of the whole buffer.
    """

    kind: str
    group: tuple[int, ...]
    bytes: int


def message(name: str, args: Any) -> Message | None:
    """Of a `c10d` operator; None: it is none of a group."""
    leaves = tree_leaves(args)
    group = next((found for value in leaves if (found := _group(value)) is not None), None)
    if group is None:
        return None
    first, second = (sum(x.nbytes for x in tree_leaves(value) if isinstance(x, torch.Tensor)) for value in args[:2])
    return Message(KINDS.get(name, name), tuple(dist.get_process_group_ranks(group)), max(first, second))


def _group(value: Any) -> dist.ProcessGroup | None:
    if isinstance(value, dist.ProcessGroup):
        return value
    if isinstance(value, torch.ScriptObject) and str(value._type()).endswith("ProcessGroup"):
        return dist.ProcessGroup.unbox(value)
    return None
