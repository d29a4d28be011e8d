"""The likeliest token and log-likelihoods against torch on whole logits; vocabularies split over ranks."""

from __future__ import annotations

import pytest
import torch

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups, mcore
from megatron_ultralong.model import likelihoods as module
from megatron_ultralong.model.likelihoods import likelihoods
from megatron_ultralong.model.loss_options import LossOptions

N, D, V = 37, 16, 53


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))


class Group:
    """One rank's view of a group whose gathers are answered from what all ranks put in, in rounds."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


@pytest.mark.parametrize("chunk", [0, 1, 10])
def test_one_process(chunk: int) -> None:
    rows, weight, tokens = inputs()
    with groups.single_process(ParallelConfig(device="cpu")):
        group = mcore.parallel_state.get_tensor_model_parallel_group()
        likeliest, found = likelihoods(rows, weight, tokens, group, LossOptions(chunk=chunk))
        none = likelihoods(rows[:0], weight, tokens[:0], group)
    logits = rows @ weight.t()
    assert torch.equal(likeliest, logits.argmax(-1))
    exact = -torch.nn.functional.cross_entropy(logits.double(), tokens, reduction="none")
    assert (found - exact).abs().max() < 5e-6
    assert none[0].shape == none[1].shape == (0,)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_a_split_vocabulary_with_padding(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's own part is computed first; then each rank joins what all would have gathered."""
    rows, weight, tokens = (x.double() if x.is_floating_point() else x for x in inputs())
    per = -(-V // size) + 1  # padding on the last ranks, or whole ranks of it
    padded = torch.cat((weight, torch.full((per * size - V, D), 9.0, dtype=torch.float64)))
    options = LossOptions(vocabulary=V)
    parts: list[list[torch.Tensor]] = []

    def record(own: torch.Tensor, group: Group) -> torch.Tensor:
        parts[group.rank()].append(own)
        return own[None].expand(size, *own.shape)

    monkeypatch.setattr(module, "_gather", record)
    for rank in range(size):
        parts.append([])
        likelihoods(rows, padded[rank * per : (rank + 1) * per], tokens, Group(rank, size), options)  # type: ignore[arg-type]
    asked: list[int] = []

    def answer(own: torch.Tensor, group: Group) -> torch.Tensor:
        asked.append(len(asked))
        return torch.stack([given[(len(asked) - 1) % 2] for given in parts])

    monkeypatch.setattr(module, "_gather", answer)
    likeliest, found = likelihoods(rows, padded[:per], tokens, Group(0, size), options)  # type: ignore[arg-type]
    logits = rows @ weight.t()
    assert torch.equal(likeliest, logits.argmax(-1))
    exact = -torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    assert (found - exact).abs().max() < 1e-12
