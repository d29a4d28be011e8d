"""Seconds of one process's collectives, by which processes take part and what lies between them.

A group is a stride and a size: its ranks are every `stride`-th one, in megatron-core's order TP, CP, DP, PP (TP
innermost). A group whose span fits into an NVLink domain talks over NVLink, any other also over the network, where each
GPU has a port ("rail") of its own. Pure arithmetic.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from megatron_ultralong.planning.hardware_profile import HardwareProfile, LinkRate

Kind = Literal["send", "all_gather", "reduce_scatter", "all_reduce", "all_to_all"]


@dataclasses.dataclass(frozen=True)
class Group:
    """Ranks that talk to each other.

    Attributes:
        stride: between the numbers of two neighbours.
        size: how many there are.
    """

    stride: int
    size: int


@dataclasses.dataclass(frozen=True)
class Groups:
    """Those of one rank of a job.

    Attributes:
        tensor: TP.
        ring: the outer context-parallel group.
        ulysses: the inner one, neighbours that exchange heads.
        replicas: DP x CP, over which gradients are added up.
        pipeline: PP.
    """

    tensor: Group
    ring: Group
    ulysses: Group
    replicas: Group
    pipeline: Group

    @classmethod
    def of(cls, world_size: int, tensor: int, context: int, ulysses: int, pipeline: int) -> Groups:
        """As megatron-core lays them (engine/groups.py)."""
        return cls(
            Group(1, tensor),
            Group(tensor * ulysses, context // ulysses),
            Group(tensor, ulysses),
            Group(tensor, world_size // (tensor * pipeline)),
            Group(world_size // pipeline, pipeline),
        )


def link(profile: HardwareProfile, kind: Kind, scope: Literal["domain", "network"]) -> LinkRate:
    """The rate of such messages there; where none was measured of this kind or scope, the nearest one's."""
    fitting = [one for one in profile.links if one.scope == scope] or list(profile.links)
    return next((one for one in fitting if one.kind == kind), None) or next(
        (one for one in fitting if one.kind == "any"), fitting[0]
    )


def seconds(profile: HardwareProfile, kind: Kind, payload: float, group: Group) -> float:
    """Of one collective.

    Args:
        profile: the machine.
        kind: which.
        payload: bytes on one rank: of a gather what it ends with, of a scatter what it begins with, else what it has.
        group: who takes part.

    A gather or scatter over n ranks moves (n - 1) / n of the payload in n - 1 steps, an all-reduce twice that (ring
    algorithms, as NCCL's). Where g of them share a domain, what crosses the network is spread over their g ports. Of an
    all-to-all each rank keeps 1 / n; what goes to other domains leaves by its own port.
    """
    n = group.size
    if n == 1:
        return 0.0
    domain = profile.domain or 1
    inside = link(profile, kind, "domain")
    if group.stride * n <= domain:
        rate, latency, crossing = inside.rate, inside.latency, 1.0
    else:
        outside = link(profile, kind, "network")
        together = min(n, max(1, domain // group.stride))
        rate, latency, crossing = outside.rate, outside.latency, (n - together) / (n - 1)
        if kind not in ("send", "all_to_all"):
            rate, crossing = min(inside.rate, outside.rate * together), 1.0
    if kind == "send":
        return payload / rate + latency
    if kind == "all_to_all":
        return payload * (n - 1) / n * crossing / rate + latency
    turns = 2 if kind == "all_reduce" else 1
    return turns * (payload * (n - 1) / n / rate + (n - 1) * latency)
