"""The operators that a layer is said to launch are those that it does, counted on tensors without values."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.planning.launches import STEP, launches_of_a_layer
from megatron_ultralong.rehearsal.rehearse import rehearse
from tests.benchmarks.count_operators import by_part, counted
from tests.planning.layouts import LLAMA, NARROW, _layout

RING = 16  # of `counted`, under TP 8
BESIDE = {"none": 2 * RING + 6 * RING + 6, "selective": 2 * RING + 6 * RING + 9, "full": 3 * RING + 8 * RING + 8}
"""Attention's kernels and messages, which `by_part` leaves out: docs/planning.md."""


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_counts(recompute: Any) -> None:
    one, two = (by_part(counted(layers, recompute, 131_072)) for layers in (1, 2))
    parallel = ParallelConfig(tensor=8, context=RING, recompute=recompute)
    said = launches_of_a_layer(parallel).total
    assert said == pytest.approx((two - one).total() + BESIDE[recompute], rel=0.06)
    assert 0 < 2 * one.total() - two.total() < 4 * STEP  # the rest of the step, with few chunks of the loss


def test_recomputation_launches_a_forward_again() -> None:
    plain = launches_of_a_layer(ParallelConfig(context=8))
    assert plain.again == 0
    assert launches_of_a_layer(ParallelConfig(context=8, recompute="selective")).again == 16
    full = launches_of_a_layer(ParallelConfig(context=8, recompute="full"))
    assert plain.forward - 2 <= full.again <= plain.forward
    assert dataclasses.astuple(launches_of_a_layer(ParallelConfig())) == (12, 26, 0)
    assert launches_of_a_layer(ParallelConfig(context=8, ulysses=8)) == launches_of_a_layer(ParallelConfig())


@pytest.mark.parametrize(("groups", "tiles"), [(2, 2), (4, 4)])
def test_counts_of_lean_layers(groups: int, tiles: int) -> None:
    length = 16_384
    found = [
        sum(
            counts.total()
            for counts in rehearse(layout.config, layout.model, layout.processes).operators.values()
        )
        for layout in (
            _layout("", length, 1, layers=layers, batch=1, model=LLAMA | NARROW, recompute="full", head_groups=groups,
                    mlp_chunk=length // tiles)
            for layers in (1, 2)
        )
    ]  # fmt: skip
    parallel = ParallelConfig(recompute="full", head_groups=groups)
    assert launches_of_a_layer(parallel, tiles).total == pytest.approx(found[1] - found[0], rel=0.06)
