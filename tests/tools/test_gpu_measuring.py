"""How tools/gpu_check.py goes about measuring: what fits into the time and the memory, and what is counted."""

from __future__ import annotations

import functools
from typing import Any

import _gpu_measure
import _gpu_steps
import pytest
import torch
from _gpu_kernels import pairs
from _gpu_steps import MEMORY_OPTIONS, Place, candidates, longest_of, one_of
from _gpu_timing import OUT_OF_MEMORY, Clock, Row, attempt, sweep

from megatron_ultralong.context_parallel import rectangles
from megatron_ultralong.planning.flops import ModelShape


def test_a_sweep_leaves_out_what_would_take_too_long_and_stops_without_memory() -> None:
    measured: list[int] = []

    def measure(row: Row, limit: float) -> None:
        measured.append(row["n"])
        if row["n"] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = sweep([{"n": 1}, {"n": 10**9}, {"n": 2}, {"n": 3}, {"n": 4}], "n", measure, Clock(60))
    assert measured == [1, 2, 3]
    assert found[1]["left_out"].startswith("it would take about ") and found[3]["left_out"] == OUT_OF_MEMORY
    assert len(found) == 4
    with pytest.raises(RuntimeError, match="another"):
        attempt({}, lambda: (_ for _ in ()).throw(RuntimeError("another")))


@pytest.mark.parametrize("largest", [0, 1000, 1024, 1300, 5000, 10**9])
def test_the_longest_sequence_is_found_to_an_eighth(largest: int) -> None:
    tried: list[int] = []

    def fits(length: int) -> bool:
        tried.append(length)
        return length <= largest

    found, bound = longest_of(fits, 1024, 65536, Clock(60))
    assert found <= largest and len(tried) == len(set(tried))
    if largest > 65536:
        assert (found, bound) == (65536, "none beyond 65,536 is tried")
    else:
        assert largest - found < max(found, 1024) / 8 and bound.endswith(" is out of memory")


def test_no_length_is_tried_when_the_time_is_over() -> None:
    assert longest_of(lambda length: True, 1024, 4096, Clock(0)) == (0, "time was over")


def test_ranks_of_a_ring_compute_every_pair_once() -> None:
    for ranks in (2, 4):
        found = [pairs(rectangles.plan(64 * ranks, rank, ranks, None, True)) for rank in range(ranks)]
        length = 64 * ranks
        assert sum(found) == length * (length + 1) / 2
        assert found[0] == pytest.approx(sum(found) / ranks, rel=0.01)


def test_options_that_the_plan_says_are_far_too_large_are_not_tried() -> None:
    chosen = []
    for memory in (10**15, 60 * 10**9, 10**9):
        place = Place(torch.device("cpu"), memory, _gpu_measure.FULL.model, 1.0)
        chosen.append(candidates(place, place.with_layers(2), 131072))
    names = list(MEMORY_OPTIONS)
    assert chosen[0] == names and chosen[2] == names[-1:]
    assert 0 < len(chosen[1]) < len(names) and chosen[1] == names[-len(chosen[1]) :]


def test_without_room_under_one_option_the_next_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    place, row = Place(torch.device("cpu"), 0, _gpu_measure.SMALL.model, 1.0), {"layers": 2, "tensor": 1, "tokens": 64}
    names = list(MEMORY_OPTIONS)

    def step(place: Place, model: Any, length: int, row: Row, limit: float) -> None:
        if names.index(row["memory"]) < 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        row["seconds"] = 1.0

    monkeypatch.setattr(_gpu_steps, "_step", step)
    (found,) = sweep([row], "tokens", functools.partial(_gpu_steps._step_with_room, place), Clock(60))
    assert found["memory"] == names[2] and found["without_room"] == names[:2] and "left_out" not in found


def test_shapes_of_one_tensor_parallel_rank() -> None:
    one = ModelShape.from_hf(one_of(_gpu_measure.FULL.model, 8))
    assert (one.hidden, one.heads, one.kv_heads, one.head_dim, one.ffn) == (4096, 4, 1, 128, 1792)
    assert one.layer_weights * 8 == ModelShape.from_hf(_gpu_measure.FULL.model).layer_weights
