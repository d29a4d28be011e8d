"""A layer that computes its attention by groups of heads gives the same loss and gradients, and keeps little."""

from __future__ import annotations

import collections
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import cpu_products, device, fused, groups, mcore
from megatron_ultralong.model.build import Fusions
from megatron_ultralong.planning.flops import causal_pairs
from megatron_ultralong.rehearsal.following import followed
from megatron_ultralong.rehearsal.operators import Operators
from megatron_ultralong.rehearsal.places import Place, Places
from megatron_ultralong.training.measured_memory import Storages
from tests.model import lean_twins
from tests.model.lean_twins import EXACT, LENGTH, LLAMA, apart, block, layout_of, model_of, whole
from tests.ranks import leave


@pytest.fixture
def process() -> Iterator[None]:
    with groups.single_process():
        yield


CASES: list[dict[str, Any]] = [
    {"head_groups": 1, "recompute": "full"},
    {"head_groups": 4, "recompute": "full", "mlp_chunk": 7, "offload": True},
    {"head_groups": 8, "recompute": "selective", "mlp_chunk": 7, "offload": True},
    {"head_groups": 2, "recompute": "selective", "mlp_chunk": 33},
]


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_loss_and_gradients_are_those_of_megatron_cores_layer(process: None, family: str, documents: bool) -> None:
    """Of 8 query heads and 4 key-value heads: all at once, one key-value head's, one query head, two."""
    wanted = whole(model_of(family, recompute="full"), documents)
    exact = block(model_of(family, recompute="full"), documents)
    for case in CASES:
        found = whole(model_of(family, **case), documents)
        assert torch.equal(found["loss"], wanted["loss"]), case
        assert apart(found, wanted) < EXACT[torch.float32], case
        assert apart(block(model_of(family, **case), documents), exact) < EXACT[torch.float64], case


def test_bf16_is_as_near_to_fp32_as_megatron_cores_layer(process: None) -> None:
    """Its gradients differ from an fp32 model's by bf16's rounding, 2^-8; tiles are added up in fp32."""
    wanted = whole(model_of("llama"))
    plain, lean = (
        apart({n: t.to(wanted[n].dtype) for n, t in whole(model_of("llama", "bf16", **case)).items()}, wanted)
        for case in ({"recompute": "full"}, {"recompute": "full", "head_groups": 8, "mlp_chunk": 7})
    )
    assert lean < 1.25 * plain < 20 * 2**-8


def test_initial_weights_and_evaluation_are_the_same(process: None) -> None:
    from megatron_ultralong.model.build import build_model
    from megatron_ultralong.rope.scaling import RopeScaling

    states, logits = [], []
    for options in ({}, {"head_groups": 2, "recompute": "full"}):
        mcore.model_parallel_cuda_manual_seed(5)
        torch.manual_seed(5)
        rope = RopeScaling(base=1e4, original_length=64)
        model: Any = build_model(LLAMA, rope, ParallelConfig(device="cpu", **options), "fp32")
        states.append(model.state_dict())
        layout = layout_of(False)
        with torch.no_grad():
            logits.append(model.eval()(layout.position_ids % 64, layout.position_ids, None, packed_seq_params=layout))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0] if torch.is_tensor(states[0][n]))
    assert torch.equal(*logits)


def test_what_validation_judges_is_the_same(process: None) -> None:
    """Which has no logits either, so that the last norm is taken there too."""
    found = []
    for options in ({}, {"head_groups": 2, "recompute": "full", "mlp_chunk": 7}):
        model = model_of("llama", loss_chunk=12, **options).eval()
        model.judges, layout = True, layout_of(True)
        tokens = layout.position_ids % 64
        with torch.no_grad():
            found.append(model(tokens, layout.position_ids, None, labels=tokens, packed_seq_params=layout))
    assert torch.equal(*found) and found[0].unique().numel() > LENGTH // 2


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_operations_are_recomputes_but_for_one_projection_more_and_one_product_less(
    process: None, recompute: str
) -> None:
    """Full: the projection of queries, keys and values once more; both: the MLP's second product once less."""

    def counted(groups: int) -> tuple[int, int]:
        attention: collections.Counter[Place] = collections.Counter()
        model = model_of("llama", recompute=recompute, head_groups=groups)
        with Operators() as found, followed(Places(), attention, False):
            whole(model)
        return found.products.total(), attention.total()

    width, ffn, layers = 32, 48, 2
    projection, down = 2 * LENGTH * width * (8 + 2 * 4) * 4, 2 * LENGTH * ffn * width
    products, attention = counted(0)
    products += layers * ((projection if recompute == "full" else 0) - down)
    forwards = 2 if recompute == "full" else 1
    assert attention == layers * (4 * forwards + 10) * causal_pairs([LENGTH]) * 8 * 4
    assert [counted(n) for n in (1, 2, 4, 8)] == [(products, attention)] * 4


def test_weights_gradients_go_straight_into_ddps_buffers(process: None) -> None:
    """With gradient_accumulation_fusion: matrices' there, each marked; norms' are autograd's."""
    wanted = whole(model_of("llama", recompute="full"))
    assert fused.gradient_accumulation(torch.device("cpu"), torch.float32, torch.float32)
    options: dict[str, Any] = {"recompute": "full", "head_groups": 4, "mlp_chunk": 33}
    model = model_of("llama", fusions=Fusions(gradient_accumulation=True), **options)
    for parameter in model.parameters():  # as DDP
        parameter.main_grad, parameter.grad_added_to_main_grad = torch.zeros(parameter.shape), False
    found = whole(model)
    weights = dict(model.named_parameters())
    added = {name for name, weight in weights.items() if weight.grad_added_to_main_grad}
    assert added == {name for name, weight in weights.items() if "layers" in name and weight.dim() == 2}
    assert apart({**found, **{name: weights[name].main_grad for name in added}}, wanted) < EXACT[torch.float32]


def test_tiles_are_not_added_up_in_bf16(process: None) -> None:
    """Where DDP's buffers are in bf16: a layer's sums are its own, in fp32, and autograd gets each once."""
    options: dict[str, Any] = {"recompute": "full", "head_groups": 4, "mlp_chunk": 3}
    wanted = whole(model_of("llama", "bf16", **options))
    assert fused.gradient_accumulation(torch.device("cpu"), torch.float32, torch.bfloat16)
    model = model_of("llama", "bf16", fusions=Fusions(gradient_accumulation=True), **options)
    for parameter in model.parameters():  # as DDP
        parameter.main_grad, parameter.grad_added_to_main_grad = torch.zeros_like(parameter), False
    found = whole(model)
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    layers = [weight for name, weight in model.named_parameters() if "layers" in name]
    assert not any(weight.grad_added_to_main_grad or weight.main_grad.any() for weight in layers)


def test_the_most_that_is_held(process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In streams of [L, D]: input, attention's output, gradient, keys' and values' gradients (1, with half the heads),
    and of one of four groups queries, keys and values (1/2), as much and 1/4 for gradients, log-sum-exps (1/4)."""
    monkeypatch.setattr(cpu_products, "has_bf16", lambda: True)  # fp32 copies, where it has none, are no formula's
    monkeypatch.setattr(lean_twins, "LENGTH", 2048)
    monkeypatch.setitem(lean_twins.FAMILIES, "llama", {**LLAMA, "num_hidden_layers": 1, "hidden_size": 64})
    held = {}
    for count in (0, 4):
        model = model_of("llama", "bf16", recompute="full", head_groups=count, mlp_chunk=64, loss_chunk=64)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with Storages() as meter:
            meter.begin()
            whole(model)
        held[count] = meter.highest() / (2 * 2048 * 64)
    print("streams held at the peak without groups, and with four:", held)
    assert 5.5 < held[4] < 5.5 + 1 < held[0] / 3


GRIDS: list[tuple[dict[str, Any], bool, list[dict[str, Any]]]] = [
    ({"tensor": 2, "sequence_parallel": True}, False, [{"head_groups": 2, "mlp_chunk": 7}, {"head_groups": 4}]),
    ({"tensor": 2}, True, [{"head_groups": 2, "mlp_chunk": 33, "recompute": "selective"}]),
    ({"context": 2}, True, [{"head_groups": 8, "mlp_chunk": 7, "offload": True}]),
    ({"context": 2}, False, [{"head_groups": 2, "recompute": "selective"}]),
    ({"context": 2, "ulysses": 2}, True, [{"head_groups": 4}, {"head_groups": 2, "recompute": "selective"}]),
]
"""Sizes of two ranks' grids, whether documents are masked, and the lean layers that are compared there."""


def compare(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    device.use("cpu")
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    for sizes, documents, cases in GRIDS:
        groups.lay_grid(ParallelConfig(**sizes), 1)
        plain = {**sizes, "recompute": "full"}
        wanted, exact = whole(model_of("qwen3", **plain), documents), block(model_of("qwen2", **plain), documents)
        for case in cases:
            found = whole(model_of("qwen3", **{**plain, **case}), documents)
            # By MKL's AVX2 kernels a product of 7 rows is summed in another order than one of all rows.
            few = 0 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 4 * 2**-24
            torch.testing.assert_close(found["loss"], wanted["loss"], rtol=few, atol=0, msg=str((sizes, case)))
            assert apart(found, wanted) < EXACT[torch.float32], (sizes, case)
            assert apart(block(model_of("qwen2", **{**plain, **case}), documents), exact) < EXACT[torch.float64]
        mcore.parallel_state.destroy_model_parallel()
        gc.collect()
    leave()


@pytest.mark.gloo
def test_two_ranks_compute_the_same_as_with_megatron_cores_layer(tmp_path: Path) -> None:
    mp.spawn(compare, (str(tmp_path / "store"),), nprocs=2)
