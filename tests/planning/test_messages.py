"""Seconds of collectives: ring formulas on links with plain numbers, and which link a group talks over."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_ultralong.planning.hardware_profile import LinkRate, find
from megatron_ultralong.planning.messages import Group, Groups, link, seconds

LINKS = (
    LinkRate("domain", "any", 100.0, 0.0),
    LinkRate("domain", "send", 50.0, 0.0),
    LinkRate("network", "any", 10.0, 0.0),
)
PROFILE = dataclasses.replace(find("h100"), links=LINKS, domain=8)


def test_groups_lie_as_megatron_core_lays_them() -> None:
    groups = Groups.of(world_size=256, tensor=4, context=16, ulysses=2, pipeline=2)
    assert (groups.tensor, groups.ulysses, groups.ring) == (Group(1, 4), Group(4, 2), Group(8, 8))
    assert (groups.replicas, groups.pipeline) == (Group(4, 32), Group(128, 2))


@pytest.mark.parametrize(
    ("kind", "group", "expected"),
    [
        ("all_gather", Group(1, 8), 1000 * 7 / 8 / 100),  # within the domain
        ("reduce_scatter", Group(1, 8), 1000 * 7 / 8 / 100),
        ("all_reduce", Group(1, 8), 2 * 1000 * 7 / 8 / 100),
        ("all_to_all", Group(1, 8), 1000 * 7 / 8 / 100),
        ("send", Group(1, 8), 1000 / 50),
        ("all_gather", Group(2, 8), 1000 * 7 / 8 / 40),  # four ranks of a domain share four ports
        ("all_gather", Group(8, 4), 1000 * 3 / 4 / 10),  # one rank a domain
        ("all_gather", Group(1, 16), 1000 * 15 / 16 / 80),  # eight ports
        ("all_to_all", Group(4, 4), 1000 * 2 / 4 / 10),  # half of the ranks are elsewhere
        ("send", Group(8, 4), 1000 / 10),
        ("all_gather", Group(1, 1), 0.0),
    ],
)
def test_seconds(kind: str, group: Group, expected: float) -> None:
    assert seconds(PROFILE, kind, 1000.0, group) == pytest.approx(expected)  # type: ignore[arg-type]


def test_each_step_of_a_ring_has_its_latency() -> None:
    slow = dataclasses.replace(PROFILE, links=(LinkRate("domain", "any", 1e9, 1.0),))
    assert seconds(slow, "all_gather", 8.0, Group(1, 8)) == pytest.approx(7.0)
    assert seconds(slow, "all_reduce", 8.0, Group(1, 8)) == pytest.approx(14.0)
    assert seconds(slow, "all_to_all", 8.0, Group(1, 8)) == pytest.approx(1.0)


def test_a_link_that_was_not_measured_is_the_nearest_that_was() -> None:
    assert link(PROFILE, "send", "network").rate == 10.0
    alone = dataclasses.replace(PROFILE, links=LINKS[1:2])
    assert link(alone, "all_gather", "network").rate == 50.0
