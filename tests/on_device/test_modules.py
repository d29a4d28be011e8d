"""Rotary positions, head and loss, recomputation and offload, on a CPU and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _gpu_run import LLAMA_8B

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine import mcore
from megatron_ultralong.model.build import build_model
from megatron_ultralong.model.loss import LossOptions, sum_of_losses
from megatron_ultralong.model.rotary import Rotary, rotate
from megatron_ultralong.rope.scaling import RopeScaling
from tests.on_device.device_process import DeviceProcess

FOUR_MILLION = RopeScaling(base=5e5, kind="yarn", factor=512.0, original_length=8192)
LENGTHS = {"cpu": 256, "gpu": 8192}


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


def table(start: int, length: int, dtype: torch.dtype, angles: Any) -> torch.Tensor:
    return Rotary(FOUR_MILLION, 128, angles, dtype)(torch.arange(start, start + length)[None])


@pytest.mark.parametrize("angles", ["fp32", "fp64"])
@pytest.mark.parametrize("start", [0, 4_100_000])
def test_the_rotary_table_is_the_cpus(
    device_process: DeviceProcess, cpu_process: DeviceProcess, start: int, angles: str
) -> None:
    """Angles are products, which IEEE rounds alike everywhere; a cosine may differ in its last two bits."""
    length = LENGTHS[device_process.kind]
    here, there = (p.run(table, start, length, torch.float32, angles) for p in (device_process, cpu_process))
    assert here.shape == (length, 1, 1, 128) and 0 < here.abs().max() <= FOUR_MILLION.attention_factor * 1.0001
    assert (here - there).abs().max() <= 4 * torch.finfo(torch.float32).eps * FOUR_MILLION.attention_factor


def rotated(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Heads, a table, the heads rotated, and the gradient."""
    generator, device = torch.Generator().manual_seed(1), engine_device.current()
    heads, grad = (torch.randn(length, 2, 8, 128, generator=generator).to(device, dtype) for _ in range(2))
    positions = torch.stack((torch.arange(length), torch.arange(length) + 4_000_000))
    turning = Rotary(FOUR_MILLION, 128, dtype=dtype)(positions)
    heads.requires_grad_()
    out = rotate(heads, turning)
    out.backward(grad)
    assert heads.grad is not None
    return [heads, turning, grad, out, heads.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotating_is_as_near_fp64_as_plain_products(device_process: DeviceProcess, dtype: torch.dtype) -> None:
    heads, turning, grad, out, back = device_process.run(rotated, LENGTHS[device_process.kind] // 8, dtype)
    cos, sin = turning.chunk(2, dim=-1)

    def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    for given, found, sign in ((heads, out, 1), (grad, back, -1)):
        exact = turned(given.double(), cos.double(), sign * sin.double())
        assert relative(found, exact) <= 2 * relative(turned(given, cos, sign * sin), exact)


def losses(positions: int, vocabulary: int, width: int) -> dict[str, list[torch.Tensor]]:
    """Total and gradients: in chunks, eagerly in bf16 and eagerly in fp64."""
    generator, device = torch.Generator().manual_seed(2), engine_device.current()
    hidden = torch.randn(positions, 1, width, generator=generator).to(device, torch.bfloat16)
    weight = torch.randn(vocabulary, width, generator=generator).mul_(3 * width**-0.5).to(device, torch.bfloat16)
    labels = torch.randint(vocabulary, (1, positions), generator=generator)
    mask = (torch.rand(1, positions, generator=generator) > 0.3).float()
    group = mcore.parallel_state.get_tensor_model_parallel_group()

    def eager(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        logits = h[:, 0] @ w.t()
        logits = logits if logits.dtype == torch.float64 else logits.float()
        each = torch.nn.functional.cross_entropy(logits, labels[0].to(device), reduction="none")
        return (each * mask[0].to(device)).sum()

    def chunked(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        chunk = LossOptions(chunk=positions // 3)
        return sum_of_losses(h, w, labels.to(device), mask, group, options=chunk)

    found = {}
    for name, function, dtype in (
        ("chunked", chunked, torch.bfloat16),
        ("eager", eager, torch.bfloat16),
        ("exact", eager, torch.float64),
    ):
        leaves = [x.to(dtype).detach().requires_grad_() for x in (hidden, weight)]
        total = function(*leaves)
        total.backward()
        found[name] = [total, *(x.grad for x in leaves)]
    return found


def test_the_loss_in_chunks_is_as_near_as_whole_logits_in_bf16(device_process: DeviceProcess) -> None:
    sizes = {"cpu": (48, 96, 32), "gpu": (4096, 32000, 1024)}[device_process.kind]
    found = device_process.run(losses, *sizes)
    floors = (torch.finfo(torch.bfloat16).eps / 16, 1e-6, 1e-6)  # one number's error may be small by chance
    for name, a, b, c, floor in zip(("total", "hidden", "weight"), *found.values(), floors, strict=True):
        assert relative(a, c) <= 2 * relative(b, c) + floor, name


def loss_and_gradients(length: int, precision: Any, sizes: dict[str, int], **options: Any) -> list[torch.Tensor]:
    """Of a model of three layers whose weights are drawn on the CPU."""
    device = engine_device.current()
    kind: Any = "gpu" if device.type == "cuda" else "cpu"
    parallel = ParallelConfig(device=kind, **options)
    hf_config = {**LLAMA_8B, "num_hidden_layers": 3, **sizes}
    rope = RopeScaling(base=1e4, original_length=length)
    model = build_model(hf_config, rope, parallel, precision).to(device)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        parameter.data.copy_(drawn)
    tokens = torch.randint(sizes["vocab_size"], (1, length + 1), generator=generator).to(device)
    positions = torch.arange(length)[None]
    loss = model(
        input_ids=tokens[:, :-1],
        position_ids=positions,
        attention_mask=None,
        labels=tokens[:, 1:],
        loss_mask=torch.ones(1, length),
        packed_seq_params=SequenceLayout(position_ids=positions, documents=None),
    )
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


SIZES = {
    "cpu": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
    },
    "gpu": {
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
    },
}


@pytest.mark.parametrize(
    "options",
    [{"recompute": "selective"}, {"recompute": "full"}, {"recompute": "full", "offload": True}],
    ids=str,
)
def test_recomputation_and_offload_give_the_same_bytes(device_process: DeviceProcess, options: dict[str, Any]) -> None:
    kind = device_process.kind
    plain, ours = (
        device_process.run(loss_and_gradients, LENGTHS[kind] // 2, "bf16", SIZES[kind], **chosen)
        for chosen in ({}, options)
    )
    assert len(plain) == len(ours) > 20
    assert all(a.equal(b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_groups_of_heads_give_the_same_loss_and_gradients(device_process: DeviceProcess, recompute: Any) -> None:
    """Norms' gradients and tiles' are added up in another order, each tile's in bf16."""
    kind = device_process.kind
    lean = {"recompute": recompute, "offload": True, "head_groups": 2, "mlp_chunk": LENGTHS[kind] // 8}
    plain, ours = (
        device_process.run(loss_and_gradients, LENGTHS[kind] // 2, "bf16", SIZES[kind], **chosen)
        for chosen in ({}, lean)
    )
    assert len(plain) == len(ours) > 20
    assert all((a - b).norm() <= 2**-6 * b.norm() for a, b in zip(ours, plain, strict=True))
