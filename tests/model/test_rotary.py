"""The rotary table: transformers' and megatron-core's numbers, made once, held by nobody longer than needed."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import groups
from megatron_ultralong.model import rotary as rotary_module
from megatron_ultralong.model import rotate_triton
from megatron_ultralong.model.build import build_model
from megatron_ultralong.model.rotary import Rotary, rotate, serving_frequencies
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.scaling import RopeScaling, temperature
from tests.triton_kernels import compile_for_gpus

PLAIN = RopeScaling(base=10000.0, original_length=64)
FOUR_MILLION = RopeScaling(base=5e5, kind="yarn", factor=512.0, original_length=8192)
LONGROPE: dict[str, Any] = {
    "kind": "longrope",
    "short_factors": tuple(1 + i / 50 for i in range(32)),
    "long_factors": tuple(1.5**i for i in range(32)),
}


def transformers_config(rope: RopeScaling, head_dim: int) -> LlamaConfig:
    hf = config_json.write(rope)
    parameters = (hf["rope_scaling"] or {"rope_type": "default"}) | {"rope_theta": hf["rope_theta"]}
    parameters |= {"rope_type": parameters.get("rope_type", parameters.get("type"))}
    if "original_max_position_embeddings" in hf:
        parameters["original_max_position_embeddings"] = hf["original_max_position_embeddings"]
    return LlamaConfig(
        head_dim=head_dim, rope_parameters=parameters, max_position_embeddings=hf["max_position_embeddings"]
    )


@pytest.mark.parametrize("kind", ["linear", "dynamic-ntk", "llama3", "yarn", "yarn, exact ends"])
def test_fp32_frequencies_are_transformers_own_bit_for_bit(kind: str) -> None:
    for base, dim, factor, length in itertools.product(
        (1e4, 5e5, 1e9), (64, 80, 128, 256), (1.0, 8.5, 128.0, 512.0), (2048, 8192, 131072)
    ):
        given: dict[str, Any] = {"base": base, "factor": factor, "original_length": length, "kind": kind}
        if kind.startswith("yarn"):
            given |= {"kind": "yarn", "form": "coded", "beta": 32.0, "truncate": kind == "yarn"}
        rope = RopeScaling(**given)
        config = transformers_config(rope, dim)
        theirs, _ = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, seq_len=rope.length)
        assert torch.equal(serving_frequencies(rope, dim), theirs), rope


def test_fp32_frequencies_of_lists_and_of_plain_rope() -> None:
    assert torch.equal(serving_frequencies(PLAIN, 64), LlamaRotaryEmbedding(transformers_config(PLAIN, 64)).inv_freq)
    rope = RopeScaling(base=1e4, factor=32.0, original_length=4096, **LONGROPE)
    for length in (4096, 4097):
        theirs, _ = ROPE_INIT_FUNCTIONS["longrope"](transformers_config(rope, 64), seq_len=length)
        assert torch.equal(serving_frequencies(rope, 64, length), theirs)
    ntk = RopeScaling(base=1e4, kind="ntk", factor=4.0, original_length=64)
    stated = RopeScaling(base=ntk.ntk_base(64), original_length=256)  # as an export says it
    assert torch.equal(serving_frequencies(ntk, 64), LlamaRotaryEmbedding(transformers_config(stated, 64)).inv_freq)


@pytest.mark.parametrize("start", [0, 1_048_000, 4_194_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cos_and_sin_are_transformers_own_bit_for_bit(start: int, dtype: torch.dtype) -> None:
    positions = torch.arange(start, start + 304)[None]
    rope = RopeScaling(base=5e5, kind="yarn", form="coded", factor=128.0, original_length=8192, attention_factor=1.25)
    theirs = LlamaRotaryEmbedding(transformers_config(rope, 128))
    cos, sin = theirs(torch.empty(0, dtype=dtype), positions)
    table = Rotary(rope, 128, dtype=dtype)(positions)[:, 0, 0]
    assert table.dtype == dtype
    assert torch.equal(table[:, :64], cos[0, :, :64]) and torch.equal(table[:, 64:], sin[0, :, :64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotary_dim", [16, 12])
def test_rotating_is_megatron_cores_bit_for_bit(dtype: torch.dtype, rotary_dim: int) -> None:
    heads = torch.randn(40, 2, 3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    positions = torch.stack((torch.arange(40), torch.arange(7, 47)))
    rope = RopeScaling(base=1e4, original_length=64, attention_factor=1.25)
    angles = positions.t()[..., None].float() * serving_frequencies(rope, rotary_dim)
    table = Rotary(rope, rotary_dim, dtype=dtype)(positions)
    twin = heads.clone().requires_grad_()
    theirs = _apply_rotary_pos_emb_bshd(twin, torch.cat((angles, angles), -1).unsqueeze(2), mscale=1.25)
    ours = rotate(heads.requires_grad_(), table)
    assert torch.equal(ours, theirs)
    weights = torch.randn(heads.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (theirs * weights).sum().backward()
    (ours * weights).sum().backward()
    assert heads.grad is not None and twin.grad is not None
    assert torch.equal(heads.grad, twin.grad)


def test_holds_only_the_positions_of_this_rank() -> None:
    whole = Rotary(PLAIN, 16)(torch.arange(64)[None])
    for rank in range(2):
        held = torch.cat([torch.arange(*span) for span in zigzag.spans(64, rank, 2)])
        share = Rotary(PLAIN, 16)(held[None])
        assert share.shape == (32, 1, 1, 16)
        assert torch.equal(share, whole[held])


def test_four_million_positions_on_sixteen_ranks_cost_what_256k_cost() -> None:
    rotary = Rotary(FOUR_MILLION, 128, dtype=torch.bfloat16)
    table = rotary(torch.cat([torch.arange(*span) for span in zigzag.spans(4_194_304, 15, 16)])[None])
    assert table.untyped_storage().nbytes() == 262_144 * 128 * 2
    short = Rotary(FOUR_MILLION, 128, dtype=torch.bfloat16)(torch.arange(262_144)[None])
    assert table.untyped_storage().nbytes() == short.untyped_storage().nbytes()


def test_rows_of_a_batch_have_positions_of_their_own() -> None:
    table = Rotary(PLAIN, 8)(torch.tensor([[0, 1, 2], [5, 0, 1]]))
    assert table.shape == (3, 2, 1, 8)
    assert torch.equal(table[1, 0], table[2, 1])


def test_chunks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = torch.arange(100).view(2, 50)
    whole = Rotary(PLAIN, 8, "fp64")(positions)
    monkeypatch.setattr("megatron_ultralong.model.rotary._CHUNK", 7)
    assert torch.equal(Rotary(PLAIN, 8, "fp64")(positions), whole)


def test_fp64_angles_are_exact_near_four_million() -> None:
    positions = torch.arange(4_194_000, 4_194_304)
    exact = np.cos(positions.numpy()[:, None] * FOUR_MILLION.inverse_frequencies(128)[None, :])
    errors = {}
    for angles in ("fp32", "fp64"):
        ours = Rotary(FOUR_MILLION, 128, angles)(positions[None])[:, 0, 0, :64].double().numpy()  # type: ignore[arg-type]
        errors[angles] = np.abs(ours - exact).max()
    assert errors["fp64"] < 3e-7  # an ulp of an angle below 2 pi, and one of its cosine
    assert 1e-2 < errors["fp32"] < 0.5  # an ulp near 4M radians is 0.25, half of it each for frequency and angle


def test_a_table_is_kept_while_positions_stay_and_dropped_when_they_change() -> None:
    rotary = Rotary(PLAIN, 8)
    positions = torch.arange(32)[None].clone()
    first = rotary(positions)
    assert rotary(positions.clone()) is first
    freed = weakref.ref(first)
    positions += 1  # a buffer that its owner fills anew is another batch
    second = rotary(positions)
    assert not torch.equal(second, first)
    assert torch.equal(second, Rotary(PLAIN, 8)(positions))
    del first
    gc.collect()
    assert freed() is None
    assert not list(rotary.buffers()) and not rotary.state_dict()


class Cosines(TorchDispatchMode):
    """Counts evaluations of cos."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.cos.default
        return func(*args, **(kwargs or {}))


HF = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "rope_theta": 10000.0,
}


def microbatch(model: Any, positions: torch.Tensor) -> torch.Tensor:
    tokens = torch.arange(positions.numel()).view_as(positions) % 64
    layout = SequenceLayout(position_ids=positions)
    return model(input_ids=tokens, position_ids=positions, attention_mask=None, packed_seq_params=layout)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_cos_is_taken_once_for_all_layers_microbatches_and_recomputation(recompute: Any) -> None:
    parallel = ParallelConfig(device="cpu", recompute=recompute)
    with groups.single_process(parallel):
        model = build_model(HF, PLAIN, parallel, "fp32")
        outputs = []
        with Cosines() as cosines:
            for _ in range(2):  # both in flight, as in a pipeline
                outputs.append(microbatch(model, torch.arange(16)[None]))
            torch.stack(outputs).sum().backward()
        assert cosines.count == 1
        restarting = torch.arange(16)[None] % 5
        with Cosines() as cosines:
            microbatch(model, restarting).sum().backward()
        assert cosines.count == 1
        kept = weakref.ref(model.rotary_pos_emb._kept[1])
        outputs = None
        microbatch(model, torch.arange(16)[None])
        gc.collect()
        assert kept() is None


def test_recomputation_sees_the_positions_of_its_own_microbatch() -> None:
    gradients = []
    for recompute in ("none", "selective", "full"):
        parallel = ParallelConfig(device="cpu", recompute=recompute)  # type: ignore[arg-type]
        with groups.single_process(parallel):
            torch.manual_seed(0)
            model = build_model(HF, PLAIN, parallel, "fp32")
            first = microbatch(model, torch.arange(16)[None])
            second = microbatch(model, torch.arange(16)[None] % 5)  # replaces the kept table before backward
            (first.square().sum() + second.sum()).backward()
            gradients.append(model.decoder.layers[0].self_attention.linear_qkv.weight.grad.clone())
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_dynamic_ntk_follows_transformers_module_from_length_to_length() -> None:
    rope = RopeScaling(base=1e4, kind="dynamic-ntk", factor=2.0, original_length=32)
    theirs, ours = LlamaRotaryEmbedding(transformers_config(rope, 64)), Rotary(rope, 64)
    for length in (16, 32, 48, 96):
        positions = torch.arange(length)[None]
        cos, _ = theirs(torch.empty(0), positions)
        torch.testing.assert_close(ours(positions)[:, 0, 0, :32], cos[0, :, :32], rtol=0, atol=2e-5)


def test_the_attention_factor_is_in_the_table() -> None:
    positions = torch.arange(16)[None]
    hot = RopeScaling(base=1e4, kind="yarn", factor=8.0, original_length=16, attention_factor=temperature(8.0))
    cold = RopeScaling(base=1e4, kind="yarn", factor=8.0, original_length=16)
    assert torch.equal(Rotary(hot, 8)(positions), Rotary(cold, 8)(positions) * temperature(8.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("head", "turned"), [(16, 16), (24, 8), (128, 128)])
def test_the_triton_kernel_rotates_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head: int, turned: int
) -> None:
    """Run by Triton's interpreter, which cuts bf16 off where a GPU rounds it, so in fp16; heads as a projection has."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    monkeypatch.setattr(rotate_triton, "_kernel", interpreter.InterpretedFunction(rotate_triton._rotate))
    heads = torch.randn(19, 2, 5, 3 * head).to(dtype)[..., head : 2 * head]
    table = Rotary(PLAIN, turned, dtype=dtype)(torch.stack((torch.arange(19), torch.arange(19) * 7)))
    for sign in (1, -1):
        ours = rotate_triton.rotated(heads, table, sign)
        assert ours.dtype == dtype and torch.equal(ours, rotary_module._rotated(heads, table, sign))


def test_the_rotating_triton_kernel_compiles_for_gpus() -> None:
    pytest.importorskip("triton")
    signature = {"heads": "*bf16", "table": "*bf16", "out": "*bf16", "sign": "fp32"}
    compile_for_gpus(rotate_triton._kernel, signature, {"ROWS": 16, "CHANNELS": 128})
