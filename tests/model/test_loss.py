"""The chunked head and loss against torch's cross-entropy of whole logits in fp64."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from megatron_ultralong.model.loss import sum_of_losses
from megatron_ultralong.model.loss_options import LossOptions, chunk_rows
from tests.ranks import leave

L, B, D, V = 24, 2, 16, 40
MASKS = ("all", "some", "none", "weights")


def inputs(mask: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = (3 * torch.randn(L, B, D, generator=generator)).to(dtype)
    weight = torch.randn(V, D, generator=generator).to(dtype)
    labels = torch.randint(V, (B, L), generator=generator)
    weights = torch.rand(B, L, generator=generator)
    chosen = {
        "all": torch.ones(B, L),
        "some": (weights > 0.6).float(),
        "none": torch.zeros(B, L),
        "weights": weights,
    }[mask]
    labels[chosen == 0] = -100
    return hidden, weight, labels, chosen


def eager(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, z_loss: float) -> list[Tensor]:
    """Loss and gradients from whole logits in fp64; 0.5 is the gradient that comes from above."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = (hidden @ weight.t()).transpose(0, 1)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.view(B, L) + z_loss * logits.logsumexp(-1).square()
    total = (losses * mask.double()).sum()
    (0.5 * total).backward()
    assert hidden.grad is not None and weight.grad is not None
    return [total.detach(), hidden.grad, weight.grad]


def chunked(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor,
    group: dist.ProcessGroup,
    sequence: bool,
    o: LossOptions,
) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    total = sum_of_losses(hidden, weight, labels, mask, group, sequence, o)
    (0.5 * total).backward()
    assert hidden.grad is not None and weight.grad is not None
    return [total.detach(), hidden.grad, weight.grad]


def relative(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm().clamp(min=1e-6)).item()


def compare(rank: int, ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    group = dist.group.WORLD
    share = slice(rank * V // ranks, (rank + 1) * V // ranks)
    for mask, chunk, z_loss, sequence in itertools.product(MASKS, (0, 7, L * B), (0.0, 1e-2), (False, True)):
        hidden, weight, labels, weights = inputs(mask, torch.float32)
        exact = eager(hidden, weight, labels, weights, z_loss)
        rows = slice(rank * L // ranks, (rank + 1) * L // ranks) if sequence else slice(None)
        ours = chunked(
            hidden[rows], weight[share], labels, weights, group, sequence, LossOptions(chunk=chunk, z_loss=z_loss)
        )
        for name, a, b in zip(
            ("total", "hidden", "weight"), ours, (exact[0], exact[1][rows], exact[2][share]), strict=True
        ):
            assert relative(a, b) < 2e-6, (mask, chunk, z_loss, sequence, name)
    leave()


@pytest.mark.gloo
@pytest.mark.parametrize("ranks", [1, 2])
def test_equals_the_eager_loss_under_tensor_parallelism(ranks: int, tmp_path: Path) -> None:
    mp.spawn(compare, (ranks, str(tmp_path / "store")), nprocs=ranks)


@pytest.fixture
def alone(tmp_path: Path) -> object:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield dist.group.WORLD
    leave()


def test_bf16_is_as_near_as_the_eager_loss_in_bf16(alone: dist.ProcessGroup) -> None:
    hidden, weight, labels, mask = inputs("some", torch.bfloat16)
    exact = eager(hidden, weight, labels, mask, 0.0)
    ours = chunked(hidden, weight, labels, mask, alone, False, LossOptions(chunk=7))
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = (h @ w.t()).transpose(0, 1).float()
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    total = (plain.view(B, L) * mask).sum()
    (0.5 * total).backward()
    for a, b, c in zip(ours, (total.detach(), h.grad, w.grad), exact, strict=True):
        assert b is not None
        assert relative(a, c) <= 1.1 * relative(b, c)


def test_whole_logits_never_exist(alone: dist.ProcessGroup) -> None:
    """No tensor of the forward or backward pass has more elements than a chunk of logits or the head."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, Tensor):
                    self.elements = max(self.elements, x.numel())
            return out

    hidden = torch.randn(512, 1, 8, requires_grad=True)
    weight = torch.randn(300, 8, requires_grad=True)
    labels, mask = torch.randint(300, (1, 512)), torch.ones(1, 512)
    with Largest() as largest:
        sum_of_losses(hidden, weight, labels, mask, alone, options=LossOptions(chunk=32)).backward()
    assert largest.elements == 32 * 300


def test_no_gradient_is_made_where_none_is_wanted(alone: dist.ProcessGroup) -> None:
    hidden, weight, labels, mask = inputs("all", torch.float32)
    total = sum_of_losses(hidden, weight, labels, mask, alone)
    assert not total.requires_grad
    assert relative(total, eager(hidden, weight, labels, mask, 0.0)[0]) < 1e-6


@pytest.mark.parametrize(
    ("chunk", "vocabulary", "ranks", "rows"),
    [(0, 128_256, 1, 2092), (0, 16_032, 8, 2092), (100, 10, 4, 25), (3, 10, 4, 1), (0, 2**30, 1, 1)],
)
def test_rows_of_a_chunk(chunk: int, vocabulary: int, ranks: int, rows: int) -> None:
    assert chunk_rows(LossOptions(chunk=chunk), vocabulary, ranks) == rows
