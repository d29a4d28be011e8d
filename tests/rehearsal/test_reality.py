"""A rehearsal against real steps of real ranks on this CPU: memory within 10 %, operators and messages equal."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.checks import check_config
from megatron_ultralong.config.reading import load_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.files import read_json
from megatron_ultralong.planning.memory import predict
from megatron_ultralong.rehearsal.rehearse import rehearse
from tests.rehearsal.real_ranks import RealRanks

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = read_json(ROOT / "examples/tiny_cpu/base/config.json", "the model", "")
OF_110M: dict[str, Any] = {
    **TINY,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 16384,
}
SEVERAL = "--parallel.distributed_optimizer true "
LEAN, SPLIT = "--parallel.mlp_chunk 64 ", "--parallel.tensor 2 --parallel.sequence_parallel true"
EXCHANGED = "--parallel.context 2 --parallel.ulysses 2"
CASES = {
    "alone": (1, "--train.global_batch_size 2"),
    "fp32": (1, "--train.precision fp32 --train.micro_batch_size 2"),
    "full": (1, "--parallel.recompute full"),
    "full in part": (1, "--parallel.recompute full --parallel.recompute_layers 2"),
    "selective": (1, "--parallel.recompute selective"),
    "tiles": (1, "--parallel.recompute full --parallel.mlp_chunk 128 --train.loss_chunk 64"),
    "offload": (1, "--parallel.recompute full --parallel.offload true"),
    "documents": (1, "--data.document_mask true"),
    "bf16 gradients": (2, SEVERAL + "--train.grad_reduce_in_fp32 false"),
    "ring": (2, SEVERAL + "--parallel.context 2"),
    "ulysses": (2, SEVERAL + "--parallel.context 2 --parallel.ulysses 2"),
    "tensor": (2, "--parallel.tensor 2 --parallel.sequence_parallel true --parallel.recompute selective"),
    "tensor whole": (2, "--parallel.tensor 2"),
    "pipeline": (2, "--parallel.pipeline 2"),
    "data": (2, ""),
    "lean": (1, LEAN + "--parallel.head_groups 2 --parallel.recompute full"),
}
MORE = {
    "lean fp32": (1, LEAN + "--parallel.head_groups 4 --parallel.recompute full --train.precision fp32"),
    "lean offload": (1, LEAN + "--parallel.head_groups 2 --parallel.recompute full --parallel.offload true"),
    "lean selective": (1, LEAN + "--parallel.head_groups 2 --parallel.recompute selective"),
    "lean tensor": (2, LEAN + "--parallel.head_groups 2 --parallel.recompute full " + SPLIT),
    "lean ring": (2, LEAN + SEVERAL + "--parallel.head_groups 2 --parallel.recompute full --parallel.context 2"),
    "lean ulysses": (2, LEAN + SEVERAL + "--parallel.head_groups 2 --parallel.recompute selective " + EXCHANGED),
    "lean pipeline": (2, LEAN + "--parallel.head_groups 2 --parallel.recompute full --parallel.pipeline 2"),
}


def case(model: dict[str, Any], options: str, length: int) -> tuple[RunConfig, dict[str, Any], int]:
    words = f"--parallel.context 1 --data.sequence_length {length} {options}".split()
    config = load_config(ROOT / "examples/tiny_cpu/extend.toml", words)
    parallel = dataclasses.replace(config.parallel, device="cpu")
    return dataclasses.replace(config, parallel=parallel), model, 100 if config.data.document_mask else 0


@pytest.fixture(scope="module")
def real() -> Iterator[RealRanks]:
    with RealRanks() as started:
        yield started


def held_against(real: RealRanks, world_size: int, config: RunConfig, model: dict[str, Any], document: int) -> None:
    check_config(config, hf_config=model, world_size=world_size, inputs=False)
    for rank, step in enumerate(real.step(config, model, world_size, document)):
        found = rehearse(config, model, world_size, rank, capability=None, document=document, every_microbatch=True)
        assert sum(found.standing.values()) == pytest.approx(step.standing, rel=0.001)
        assert found.peak.bytes - step.standing == pytest.approx(step.held - step.standing, rel=0.01)
        if not any(message.kind == "reduce-scatter" for message in step.messages):  # gloo makes one in a copy
            # An all-reduce's copy comes and goes with gloo's own threads.
            copied = max((sent.bytes for sent in step.messages if sent.kind == "all-reduce"), default=0)
            work, allocated = found.peak.bytes - step.standing, step.allocated - step.standing
            assert found.peak.bytes == pytest.approx(step.allocated, rel=0.1)
            assert 0.9 * allocated - copied <= work <= 1.1 * allocated
        planned = predict(config, model, world_size, found.coordinates.pipeline, False)
        for tensors in (planned.total, sum(found.standing.values()) + planned.peak):
            assert tensors == pytest.approx(step.held, rel=0.1), planned
        assert sum(found.operators.values(), collections.Counter()) == step.operators
        assert found.messages == step.messages


@pytest.mark.gloo
@pytest.mark.parametrize("name", CASES)
def test_a_step_of_the_tiny_model_is_as_rehearsed(real: RealRanks, name: str) -> None:
    world_size, options = CASES[name]
    held_against(real, world_size, *case(TINY, options, 512))


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_a_step_of_lean_layers_is_as_rehearsed(real: RealRanks, name: str) -> None:
    world_size, options = MORE[name]
    held_against(real, world_size, *case(TINY, options, 512))


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.parametrize("name", ["alone", "selective", "full", "ring", "tensor", "pipeline"])
def test_a_step_of_110_million_weights_is_as_rehearsed(real: RealRanks, name: str) -> None:
    world_size, options = CASES[name]
    held_against(real, world_size, *case(OF_110M, options, 1024))
