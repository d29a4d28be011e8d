"""Layouts are all there are, and the configuration's own rules decide which are allowed."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.checks import check_config
from megatron_ultralong.config.sections import DataConfig, ModelConfig, RunConfig, TrainConfig
from megatron_ultralong.planning.search.layouts import SAVINGS, divisors, layouts, name_of, problem, with_saving

HF: dict[str, Any] = {
    "num_hidden_layers": 8,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "model_type": "llama",
}
BASE = RunConfig(
    model=ModelConfig(hf=Path("model")),
    data=DataConfig(sources=(), sequence_length=8192),
    train=TrainConfig(steps=1, global_batch_size=8),
)


@pytest.mark.parametrize(
    ("number", "expected"), [(1, [1]), (12, [1, 2, 3, 4, 6, 12]), (16, [1, 2, 4, 8, 16]), (7, [1, 7])]
)
def test_divisors(number: int, expected: list[int]) -> None:
    assert divisors(number) == expected


def test_every_layout_is_there_once() -> None:
    found = [
        (x.parallel.tensor, x.parallel.pipeline, x.parallel.context, x.parallel.ulysses, x.train.micro_batch_size)
        for x in layouts(BASE, HF, 8)
    ]
    assert max(collections.Counter(found).values()) == 1
    expected = {
        (tensor, pipeline, context, ulysses)
        for tensor in range(1, 9)
        for pipeline in range(1, 9)
        for context in range(1, 9)
        for ulysses in range(1, 9)
        if 8 % (tensor * pipeline * context) == 0 and context % ulysses == 0
    }
    assert {one[:4] for one in found} == expected
    assert (1, 1, 1, 1, 1) in found and (2, 1, 4, 2, 8) in found


def test_what_is_allowed_is_what_the_checks_allow() -> None:
    reasons = collections.Counter()
    for layout in layouts(BASE, HF, 16):
        why = problem(layout, HF, 16)
        if why is None:
            for saving in SAVINGS:
                check_config(with_saving(layout, saving), hf_config=HF, world_size=16, inputs=False)
        else:
            reasons[why.split(" is ")[0]] += 1
    assert reasons["parallel.ulysses"] > 0  # more ranks than heads


def test_a_layout_in_words() -> None:
    parallel = dataclasses.replace(BASE.parallel, tensor=2, context=8, ulysses=2, recompute="full", offload=True)
    config = dataclasses.replace(BASE, parallel=parallel)
    assert name_of(config) == "TP 2 x CP 8 (2 ulysses x 4 ring) x PP 1, full, offload"
    assert name_of(BASE) == "TP 1 x CP 1 x PP 1, none"
