"""The memory plan against rehearsals of the run's own step: the peak within 5 %, every part within 15 %."""

from __future__ import annotations

import pytest

from tests.planning.layouts import MORE, QUICK, Layout, examples
from tests.planning.rehearsed_memory import both, errors


def holds(layout: Layout) -> None:
    found, planned = both(layout)
    wrong = errors(found.memory, planned)
    assert abs(wrong["total"]) <= 0.05, (wrong, planned.moment, found.peak.place)
    if 0 < layout.document < layout.config.padded_length // layout.config.parallel.context:
        assert wrong.pop("attention") >= 0  # a plan knows no lengths, and counts the ring's buffers
    assert max(map(abs, wrong.values())) <= 0.15, wrong


@pytest.mark.parametrize("layout", QUICK, ids=lambda layout: layout.name)
def test_a_plan_is_what_the_rehearsal_finds(layout: Layout) -> None:
    holds(layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE, ids=lambda layout: layout.name)
def test_plans_of_many_layouts_are_what_rehearsals_find(layout: Layout) -> None:
    holds(layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", examples(), ids=lambda layout: layout.name)
def test_plans_of_the_examples_are_what_rehearsals_find(layout: Layout) -> None:
    """At full length and depth."""
    holds(layout)
