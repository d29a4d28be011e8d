"""The operators that a layer is said to launch are those that it does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.sections import DataConfig, ModelConfig, ParallelConfig, RunConfig, TrainConfig
from megatron_ultralong.planning.launches import CHUNK, STEP, launches_of_a_layer
from tests import operators, rehearsed
from tests.benchmarks.count_operators import LLAMA


def launched(config: RunConfig, layers: int, ranks: int) -> int:
    found = rehearsed.step(config, {**LLAMA, "num_hidden_layers": layers}, ranks, 0, 0)
    own = sum(operators.own(counts) for counts in found.by_part.values())
    kernels = sum(n for name, n in found.counts.items() if name.startswith(operators.ATTENTION))
    return own + kernels + sum(n for name, n in found.counts.items() if name.startswith("c10d."))


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({"context": 4}, 4),
        ({"context": 2, "recompute": "selective"}, 2),
        ({"tensor": 2, "context": 4, "recompute": "full", "sequence_parallel": True}, 8),
    ],
    ids=str,
)
def test_counts(options: dict[str, Any], ranks: int) -> None:
    parallel = ParallelConfig(distributed_optimizer=True, device="cpu", **options)
    config = RunConfig(
        model=ModelConfig(hf=Path("model")),
        data=DataConfig(sequence_length=131_072, sources=()),
        parallel=parallel,
        train=TrainConfig(steps=1, global_batch_size=1),
    )
    one, two = (launched(config, layers, ranks) for layers in (1, 2))
    assert launches_of_a_layer(parallel).total == pytest.approx(two - one, abs=8)
    assert 2 * one - two < 2 * (STEP + CHUNK * 131_072 // 8)
    assert dataclasses.astuple(launches_of_a_layer(ParallelConfig())) == (25, 40, 0)
