"""What saves memory changes no loss and no gradient: recompute by layers, tiled MLPs, offloaded layer inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import groups
from megatron_ultralong.model.build import build_model
from megatron_ultralong.model.offload import powers_of_two, saved_on_host
from megatron_ultralong.rope.scaling import RopeScaling

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
LENGTH = 40


@pytest.fixture(scope="module", autouse=True)
def process() -> Iterator[None]:
    with groups.single_process():
        yield


def loss_and_gradients(**options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    model = build_model(
        LLAMA, RopeScaling(base=1e4, original_length=64), ParallelConfig(device="cpu", **options), "fp32"
    )
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    tokens = torch.randint(64, (1, LENGTH + 1), generator=generator)
    positions = torch.arange(LENGTH)[None]
    loss = model(
        input_ids=tokens[:, :-1],
        position_ids=positions,
        attention_mask=None,
        labels=tokens[:, 1:],
        loss_mask=torch.ones(1, LENGTH),
        packed_seq_params=SequenceLayout(position_ids=positions, documents=None),
    )
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def plain(process: None) -> tuple[Tensor, dict[str, Tensor]]:
    return loss_and_gradients()


@pytest.mark.parametrize(
    "options",
    [
        {"recompute": "full"},
        {"recompute": "full", "recompute_layers": 2},
        {"recompute": "full", "offload": True},
        {"recompute": "full", "recompute_layers": 1, "offload": True},
        {"recompute": "selective"},
        {"recompute": "selective", "recompute_layers": 1},
    ],
    ids=str,
)
def test_recompute_and_offload_give_the_same_bytes(options: dict[str, Any], plain: Any) -> None:
    loss, gradients = loss_and_gradients(**options)
    assert loss.equal(plain[0])
    assert gradients.keys() == plain[1].keys()
    assert all(gradients[name].equal(plain[1][name]) for name in gradients)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("chunk", [1, 7, 40, 100])
def test_a_tiled_mlp_sums_the_same(chunk: int, recompute: str, plain: Any) -> None:
    loss, gradients = loss_and_gradients(mlp_chunk=chunk, recompute=recompute)
    assert abs(loss - plain[0]) < 1e-6 * plain[0]
    for name, wanted in plain[1].items():  # sums over positions in another order
        assert (gradients[name] - wanted).norm() < 2e-6 * wanted.norm(), name


def test_a_tiled_mlp_never_holds_the_whole_width() -> None:
    largest = {}
    for chunk in (0, 8):
        with _Largest() as seen:
            loss_and_gradients(mlp_chunk=chunk, recompute="full")
        largest[chunk] = seen.rows
    assert largest == {0: LENGTH, 8: 8}


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Most positions of a [L, B, 2 x intermediate_size] tensor."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() == 3 and out.shape[-1] == 2 * LLAMA["intermediate_size"]:
            self.rows = max(self.rows, out.shape[0])
        return out


def test_only_layer_inputs_leave() -> None:
    inputs = torch.randn(5, 1, 8, requires_grad=True)
    other = torch.randn(5, 1, 9, requires_grad=True)
    left = []
    with saved_on_host(8, torch.float32):
        a, b = inputs * 2, other * 3
        y, z = a.square(), b.square()
        left = [y.grad_fn._saved_self.data_ptr() != a.data_ptr(), z.grad_fn._saved_self.data_ptr() != b.data_ptr()]
    assert left == [True, False]


@pytest.mark.parametrize("size", [1, 2**20 - 1, 2**20, 3 * 2**20 + 5, 6_291_456 * 512])
def test_host_copies_come_in_powers_of_two(size: int) -> None:
    *whole, last = powers_of_two(size)
    assert sum(whole) + last == size
    assert all(piece.bit_count() == 1 and piece >= 2**20 for piece in whole)
    assert whole == sorted(set(whole), reverse=True) and (last < 2**20 or last.bit_count() == 1)
