"""The plans against what PyTorch's allocator is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.engine import cpu_products
from megatron_ultralong.model.loss import sum_of_losses
from megatron_ultralong.model.loss_options import LossOptions, chunk_rows
from megatron_ultralong.planning.memory import eager_loss_memory, loss_memory
from tests.context_parallel.test_ring_memory import peak_bytes


@pytest.fixture(scope="module")
def alone() -> Iterator[dist.ProcessGroup | None]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "vocabulary", "chunk"), [(64, 8016, 0), (64, 8016, 100), (256, 1000, 400)])
def test_the_loss_takes_what_the_formula_says(
    alone: dist.ProcessGroup,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    width: int,
    vocabulary: int,
    chunk: int,
) -> None:
    monkeypatch.setattr(cpu_products, "has_bf16", lambda: True)  # fp32 copies, where it has none, are no formula's
    positions, options = 1024, LossOptions(chunk=chunk)
    hidden = torch.randn(positions, 1, width).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width).to(dtype).requires_grad_()
    labels, mask = torch.randint(vocabulary, (1, positions)), torch.ones(1, positions)

    def ours() -> Tensor:
        total = sum_of_losses(hidden, weight, labels, mask, alone, options=options)
        total.backward()
        return total

    def eager() -> None:
        loss = torch.nn.functional.cross_entropy
        loss((hidden[:, 0] @ weight.t()).float(), labels[0], reduction="sum").backward()

    rows = chunk_rows(options, vocabulary)
    assert peak_bytes(ours)[0] == pytest.approx(
        loss_memory(rows, positions, width, vocabulary, dtype.itemsize), rel=0.02
    )
    hidden.grad = weight.grad = None
    assert peak_bytes(eager)[0] == pytest.approx(eager_loss_memory(positions, vocabulary), rel=0.02, abs=weight.nbytes)


def test_the_loss_of_llama_8b_at_262144_positions() -> None:
    rows = chunk_rows(LossOptions(), 128_256)
    ours, eager = loss_memory(rows, 262_144, 4096, 128_256, 2), eager_loss_memory(262_144, 128_256)
    assert (round(ours / 1e9, 1), round(eager / 1e9, 1)) == (5.9, 403.5)
    assert ours < eager / 10
