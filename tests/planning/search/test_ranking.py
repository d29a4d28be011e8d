"""What the search finds fits, is allowed and is in order; the longest and the fewest are exactly that."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.checks import check_config
from megatron_ultralong.config.sections import DataConfig, ModelConfig, RunConfig, TrainConfig
from megatron_ultralong.planning.hardware_profile import find
from megatron_ultralong.planning.memory import predict
from megatron_ultralong.planning.search import ranking
from megatron_ultralong.planning.search.layouts import SAVINGS, layouts, with_saving
from megatron_ultralong.planning.search.ranking import (
    STEP_OF_LENGTHS,
    cluster_sizes,
    fewest,
    longest,
    planned,
    rank,
    room,
)
from megatron_ultralong.planning.step_time import step_time

LLAMA_8B: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "model_type": "llama",
}
H100 = find("h100")


def base(length: int, batch: int = 2) -> RunConfig:
    return RunConfig(
        model=ModelConfig(hf=Path("model")),
        data=DataConfig(sources=(), sequence_length=length),
        train=TrainConfig(steps=1, global_batch_size=batch),
    )


def test_plans_fit_are_allowed_and_in_order() -> None:
    found = rank(base(1 << 20, 8), LLAMA_8B, 64, H100)
    assert len(found.plans) > 50 and found.refused and found.too_large
    times = [plan.time.total for plan in found.plans]
    assert times == sorted(times)
    for plan in found.plans[::37]:
        check_config(plan.config, hf_config=LLAMA_8B, world_size=64, inputs=False)
        assert plan.memory.needed <= room(H100)
        stages = range(plan.config.parallel.pipeline)
        held = [predict(plan.config, LLAMA_8B, 64, stage, True) for stage in stages]
        assert max(one.needed for one in held) == plan.memory.needed  # no stage that was not looked at needs more
        assert step_time(plan.config, LLAMA_8B, 64, H100).total == pytest.approx(plan.time.total)
    assert all(least > room(H100) for least, _ in found.too_large)
    assert all(not any(letter.isdigit() for letter in reason) for reason in found.refused)


def test_none_of_those_left_out_fits() -> None:
    found = rank(base(1 << 20), LLAMA_8B, 8, H100)
    kept = {plan.config for plan in found.plans}
    for layout in layouts(base(1 << 20), LLAMA_8B, 8):
        for saving in SAVINGS:
            config = with_saving(layout, saving)
            if config in kept:
                continue
            try:
                check_config(config, hf_config=LLAMA_8B, world_size=8, inputs=False)
            except ValueError:
                continue
            assert planned(config, LLAMA_8B, 8, H100).memory.needed > room(H100)


def test_head_groups_are_tried_where_nothing_else_fits() -> None:
    short, long = (rank(base(length, 1), LLAMA_8B, 8, H100) for length in (1 << 20, 6 << 20))
    assert not any(plan.config.parallel.head_groups for plan in short.plans if plan.config.parallel.tensor == 8)
    assert long.plans and all(plan.config.parallel.head_groups for plan in long.plans)
    for plan in long.plans:
        check_config(plan.config, hf_config=LLAMA_8B, world_size=8, inputs=False)
        assert plan.config.optimizer.offload_fraction in (0, 1)


def test_a_thousand_gpus_take_under_five_seconds() -> None:
    begun = time.process_time()
    found = rank(base(4 << 20), LLAMA_8B, 1024, H100)
    assert found.considered > 2000
    assert time.process_time() - begun < 5


def test_the_longest_fits_and_the_next_does_not() -> None:
    found = longest(lambda length: base(length, 1), LLAMA_8B, 8, H100)
    assert found is not None and found % STEP_OF_LENGTHS == 0
    assert rank(base(found, 1), LLAMA_8B, 8, H100).plans
    step = STEP_OF_LENGTHS * max(1, found // STEP_OF_LENGTHS // 64)
    assert not rank(base(found + step, 1), LLAMA_8B, 8, H100).plans
    assert longest(lambda length: base(length, 1), LLAMA_8B, 1, dataclasses.replace(H100, memory=10**10)) is None


def test_positions_bound_the_longest() -> None:
    huge = dataclasses.replace(H100, memory=10**15)
    assert longest(lambda length: base(length, 1), LLAMA_8B, 8, huge) == 2**24


def test_the_fewest_fit_and_half_of_them_do_not() -> None:
    found = fewest(base(4 << 20, 1), LLAMA_8B, H100)
    assert found is not None and rank(base(4 << 20, 1), LLAMA_8B, found, H100).plans
    smaller = [size for size in cluster_sizes(8) if size < found]
    assert smaller and not rank(base(4 << 20, 1), LLAMA_8B, smaller[-1], H100).plans
    assert fewest(base(4 << 20, 1), LLAMA_8B, dataclasses.replace(H100, memory=10**7)) is None


def test_cluster_sizes() -> None:
    assert list(cluster_sizes(8, 64)) == [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96]


def test_reasons_lose_their_numbers() -> None:
    assert ranking._rule("parallel.x is 1,024, not 3; give 4.") == "parallel.x is n, not n"
    assert ranking._rule("c has 2 mistakes:\n  parallel.x is 3; mend\n  y") == "parallel.x is n"
