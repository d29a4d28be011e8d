"""Time by part on machines of plain numbers: where one rate counts, a step takes its operations over that rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.sections import (
    DataConfig,
    DataSource,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from megatron_ultralong.planning.flops import ModelShape, flops_by_part, step_flops
from megatron_ultralong.planning.hardware_profile import (
    AttentionRate,
    CopyRate,
    HardwareProfile,
    LinkRate,
    MatmulRate,
)
from megatron_ultralong.planning.layer_time import Seconds
from megatron_ultralong.planning.memory import predict
from megatron_ultralong.planning.step_time import forward_seconds, step_time

HF: dict[str, Any] = {
    "num_hidden_layers": 8,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "model_type": "llama",
}
SHAPE = ModelShape.from_hf(HF)
LENGTH = 4096
NEVER = 1e30
PROFILE = HardwareProfile(
    name="H100",
    precision="bf16",
    memory=8 * 10**10,
    matmul=(MatmulRate(512, 1e12),),
    attention=(AttentionRate(512, 1e12, 2e12),),
    copy=(CopyRate(1.0, NEVER),),
    commit=None,
    date="2030-01-01",
    exponential=0.0,
    launch=0.0,
    domain=8,
    links=(LinkRate("domain", "any", NEVER, 0.0),),
    host_link=NEVER,
    host_copy=NEVER,
)


def run(batch: int = 1, length: int = LENGTH, **parallel: Any) -> RunConfig:
    options = {"sequence_parallel": parallel.get("tensor", 1) > 1, "distributed_optimizer": True, **parallel}
    return RunConfig(
        model=ModelConfig(hf=Path("model")),
        data=DataConfig(sources=(), sequence_length=length),
        parallel=ParallelConfig(**options),
        train=TrainConfig(steps=1, global_batch_size=batch),
    )


def parts(config: RunConfig, ranks: int = 1, profile: HardwareProfile = PROFILE) -> Seconds:
    found = {part: seconds for part, seconds in step_time(config, HF, ranks, profile).parts.items() if seconds > 1e-12}
    return Seconds(found)


PAIRS = LENGTH * LENGTH / 2
PRODUCTS = 2 * LENGTH * SHAPE.layer_weights / 1e12
"""Seconds of a layer's products forward."""
ATTENTION = SHAPE.layers * SHAPE.heads * SHAPE.head_dim * PAIRS * (4 / 1e12 + 10 / 2e12)


def test_products_and_attention_take_their_operations_over_the_rate() -> None:
    found = parts(run())
    assert set(found) == {"linear", "attention", "head and loss"}
    assert found["linear"] == pytest.approx(3 * SHAPE.layers * PRODUCTS)
    assert found["attention"] == pytest.approx(ATTENTION)
    assert found["head and loss"] == pytest.approx(6 * LENGTH * SHAPE.hidden * SHAPE.vocabulary / 1e12)


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        ({"context": 4}, 4),
        ({"context": 4, "ulysses": 2}, 4),
        ({"context": 4, "ulysses": 4}, 4),
        ({"tensor": 4}, 4),
        ({"tensor": 2, "context": 2}, 4),
    ],
    ids=str,
)
def test_work_is_divided_over_ranks(layout: dict[str, int], ranks: int) -> None:
    """The zig-zag cut gives each rank an equal share of pairs, whatever is exchanged."""
    found, whole = parts(run(**layout), ranks), parts(run())
    assert set(found) == set(whole)
    for part in whole:
        assert found[part] == pytest.approx(whole[part] / ranks)


def test_replicas_halve_the_microbatches() -> None:
    assert parts(run(4), 2).total == pytest.approx(parts(run(2), 1).total)
    assert parts(run(4), 1).total == pytest.approx(4 * parts(run(1), 1).total)


def test_recomputation_adds_a_forward_and_selective_all_of_it_but_attention() -> None:
    forward = SHAPE.layers * PRODUCTS
    attention = ATTENTION * 4 / 1e12 / (4 / 1e12 + 10 / 2e12)
    assert "recomputation" not in parts(run())
    assert parts(run(recompute="full"))["recomputation"] == pytest.approx(forward + attention)
    assert parts(run(recompute="selective"))["recomputation"] == pytest.approx(forward)
    half = parts(run(recompute="full", recompute_layers=4))["recomputation"]
    assert half == pytest.approx((forward + attention) / 2)
    mlp = 2 * LENGTH * 3 * SHAPE.hidden * SHAPE.ffn / 1e12 * SHAPE.layers
    assert parts(run(mlp_chunk=256))["recomputation"] == pytest.approx(mlp)
    tiles = parts(run(recompute="full", mlp_chunk=256))["recomputation"]
    assert tiles == pytest.approx(forward + attention + mlp)


def test_head_groups_project_twice_again_and_leave_out_the_mlps_second_product() -> None:
    forward, down = SHAPE.layers * PRODUCTS, 2 * LENGTH * SHAPE.hidden * SHAPE.ffn / 1e12 * SHAPE.layers
    attention = ATTENTION * 4 / 1e12 / (4 / 1e12 + 10 / 2e12)
    projected = 2 * LENGTH * SHAPE.hidden * SHAPE.head_dim * (SHAPE.heads + 2 * SHAPE.kv_heads) / 1e12 * SHAPE.layers
    full, selective = (parts(run(recompute=kind, head_groups=4)) for kind in ("full", "selective"))
    assert full["recomputation"] == pytest.approx(forward + attention + projected - down)
    assert selective["recomputation"] == pytest.approx(forward - down)
    for found in (full, selective):
        assert found["linear"] == pytest.approx(3 * forward)
        assert found["attention"] == pytest.approx(ATTENTION)


def test_each_group_gathers_anew() -> None:
    """A gather of L D e bytes moves half of them between two ranks; latencies and all else cost nothing."""
    slow = dataclasses.replace(PROFILE, links=(LinkRate("domain", "any", 1e12, 0.0),))
    once = LENGTH * SHAPE.hidden * 2 / 2 / 1e12 * SHAPE.layers
    one, two = (parts(run(tensor=2, recompute="full", head_groups=n), 2, slow) for n in (1, 2))
    assert two["tensor-parallel messages"] - one["tensor-parallel messages"] == pytest.approx(2 * once)
    assert two["recomputation"] - one["recomputation"] == pytest.approx(2 * once)


def test_a_pipeline_waits_for_its_ends() -> None:
    """1F1B: (m + p - 1) slots where stages are alike; the head makes the last one longer."""
    nothing = dataclasses.replace(PROFILE, matmul=(MatmulRate(512, NEVER),))  # attention alone: stages are alike
    for microbatches in (2, 8):
        one = parts(run(microbatches), 1, nothing).total / 4
        found = parts(run(microbatches, pipeline=4), 4, nothing)
        assert found["pipeline bubble"] == pytest.approx(one * 3 / microbatches)
        assert found.total == pytest.approx(one * (microbatches + 3) / microbatches)
    uneven = parts(run(4, pipeline=4), 4)
    head = parts(run())["head and loss"]
    assert uneven["head and loss"] == pytest.approx(4 * head)  # the last stage bounds it
    assert uneven["pipeline bubble"] == pytest.approx(3 * (parts(run()).total - head) / 4)


def test_messages_hide_behind_blocks_on_a_gpu_and_not_on_a_cpu() -> None:
    """A block of the ring here takes 1/4 of a rank's attention; its keys and values are 2 x 1024 x 4 x 64 x 2 bytes."""
    share, sent = LENGTH // 4, 2 * (LENGTH // 4) * SHAPE.kv_heads * SHAPE.head_dim * 2
    block = 4 * SHAPE.heads * SHAPE.head_dim * share * LENGTH / 2 / 4 / 1e12
    back = block * 10 / 4 / 2
    slow = dataclasses.replace(PROFILE, links=(LinkRate("domain", "any", sent / block / 2, 0.0),))
    found = parts(run(context=4), 4, slow)
    left = 3 * SHAPE.layers * ((2 * block - block) + (2 * 3 * block - back))
    assert found["ring messages"] == pytest.approx(left)
    cpu = dataclasses.replace(slow, asynchronous=False)
    assert parts(run(context=4), 4, cpu)["ring messages"] == pytest.approx(3 * SHAPE.layers * 8 * block)


def test_tensor_parallel_messages() -> None:
    slow = dataclasses.replace(PROFILE, links=(LinkRate("domain", "any", 1e6, 0.0),), asynchronous=False)
    one = LENGTH * SHAPE.hidden * 2 / 2 / 1e6  # half of the payload moves
    split = parts(run(tensor=2), 2, slow)["tensor-parallel messages"]
    assert split == pytest.approx((SHAPE.layers * (4 + 6) + 2) * one)
    whole = parts(run(tensor=2, sequence_parallel=False), 2, slow)["tensor-parallel messages"]
    assert whole == pytest.approx((SHAPE.layers * (4 + 4) + 2) * one)


def test_launches_count_where_the_process_is_slower_than_its_device() -> None:
    slow = dataclasses.replace(PROFILE, launch=1.0)
    device = parts(run()).total
    assert step_time(run(), HF, 1, slow).total == pytest.approx(SHAPE.layers * 38 + 31)  # the device waits
    fast = dataclasses.replace(PROFILE, launch=1e-9)
    assert parts(run(), 1, fast).total == pytest.approx(device)
    cpu = dataclasses.replace(PROFILE, launch=1.0, asynchronous=False)
    assert parts(run(), 1, cpu)["launches"] == pytest.approx(SHAPE.layers * 38 + 31 + 56)


def test_offload_counts_what_outlasts_a_layer() -> None:
    size = LENGTH * SHAPE.hidden * 2
    slow = dataclasses.replace(PROFILE, host_link=size / 1.0)  # a second each way, a layer far less
    found = parts(run(recompute="full", offload=True), 1, slow)
    layers = parts(run(recompute="full"))
    work = layers["linear"] + layers["attention"] + layers["recomputation"]
    assert found["offload"] == pytest.approx(2 * SHAPE.layers - work)


@pytest.mark.parametrize(
    ("precision", "wide", "moved", "copied"), [("bf16", True, 48, 4), ("bf16", False, 52, 2), ("fp32", True, 48, 8)]
)
def test_adam_on_the_host_takes_its_memory_or_the_link(precision: str, wide: bool, moved: int, copied: int) -> None:
    """The larger of the two, for the share that is there; bytes as docs/training.md has them."""
    weights = predict(run(), HF, 1, 0, True).weights / 2
    plain = run()
    train = dataclasses.replace(plain.train, precision=precision, grad_reduce_in_fp32=wide)  # type: ignore[arg-type]
    half = dataclasses.replace(plain, train=train, optimizer=OptimizerConfig(offload_fraction=0.5))
    for slow, wanted in (
        (dataclasses.replace(PROFILE, host_copy=1e9), moved),
        (dataclasses.replace(PROFILE, host_link=1e9), copied),
        (dataclasses.replace(PROFILE, host_link=1e9, host_copy=1e9), moved),
    ):
        assert parts(half, 1, slow)["optimizer on the host"] == pytest.approx(0.5 * weights * wanted / 1e9)
    assert "optimizer on the host" not in parts(plain, 1, dataclasses.replace(PROFILE, host_copy=1e9))


def test_gradients_hide_behind_backward() -> None:
    config, late = run(2), run(2, overlap_grad_reduce=False, overlap_param_gather=False)
    slow = dataclasses.replace(PROFILE, links=(LinkRate("domain", "any", 1e9, 0.0),))
    parameters = SHAPE.parameters(tied=False)
    exposed = parts(late, 2, slow)
    assert exposed["gradient messages"] == pytest.approx(parameters * 4 / 2 / 1e9, rel=1e-3)
    assert exposed["weight messages"] == pytest.approx(parameters * 2 / 2 / 1e9, rel=1e-3)
    hidden = parts(config, 2, slow)
    assert hidden.get("gradient messages", 0.0) < exposed["gradient messages"]


def test_the_models_operations_and_their_share_of_the_peak() -> None:
    found = step_time(run(), HF, 1, PROFILE)
    pairs = LENGTH * (LENGTH + 1) // 2
    assert found.flops == step_flops(SHAPE, LENGTH, LENGTH, pairs)
    assert sum(flops_by_part(SHAPE, LENGTH, LENGTH, pairs).values()) == found.flops
    assert found.mfu == pytest.approx(found.flops / found.total / 989e12)
    assert found.tokens_per_second == pytest.approx(LENGTH / found.total)


def test_documents_cost_their_own_pairs() -> None:
    short = step_time(run(), HF, 1, PROFILE, document=LENGTH / 8).parts["attention"]
    assert short == pytest.approx(ATTENTION / 8)


def test_a_mixed_run_takes_the_mean_of_both_kinds_by_weight() -> None:
    kinds = [DataSource(index=Path("long"), weight=3.0), DataSource(index=Path("short"), document_mask=True)]
    mixed = dataclasses.replace(run(), data=DataConfig(sources=tuple(kinds), sequence_length=LENGTH))
    found = step_time(mixed, HF, 1, PROFILE, document=LENGTH / 8)
    whole, apart = step_time(run(), HF, 1, PROFILE), step_time(run(), HF, 1, PROFILE, document=LENGTH / 8)
    assert found.total == pytest.approx(0.75 * whole.total + 0.25 * apart.total)
    assert found.flops == pytest.approx(0.75 * whole.flops + 0.25 * apart.flops)
    assert found.parts["attention"] == pytest.approx((0.75 + 0.25 / 8) * ATTENTION)
    assert found.tokens == whole.tokens
    assert step_time(mixed, HF, 1, PROFILE).total == pytest.approx(whole.total)


def test_a_forward_pass_alone() -> None:
    found = forward_seconds(run(), HF, 1, PROFILE, LENGTH)
    assert found == pytest.approx(SHAPE.layers * PRODUCTS + ATTENTION * 4 / 1e12 / (4 / 1e12 + 10 / 2e12))
