"""2^31 labels a step and more: the gradients are divided by their number, which no count in 32 bits holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.jobs import Job, rows_of

MANY = 2**30 + 3  # on each of two ranks


def many_labels(rank: int) -> None:
    """Have every microbatch say that it has MANY labels."""
    from megatron_ultralong.training import step

    count = step._count

    def counted(*arguments: Any) -> tuple[Any, ...]:
        total, _, report = count(*arguments)
        return total, torch.tensor(MANY, dtype=torch.int), report

    step._count = counted


def many_labels_as_megatron_core_adds_them(rank: int) -> None:
    from megatron_ultralong.engine import label_count, mcore

    label_count.finalize_model_grads = mcore.finalize_model_grads
    many_labels(rank)


@pytest.mark.gloo
def test_gradients_are_divided_by_all_labels(begin: Callable[..., Job], tmp_path: Path) -> None:
    changes = {"few": None, "many": many_labels, "theirs": many_labels_as_megatron_core_adds_them}
    found = {}
    for name, change in changes.items():
        lines = tmp_path / f"{name}.jsonl"
        words = ["--train.steps", "1", "--train.global_batch_size", "2", "--log.metrics", str(lines)]
        job = begin(2, *words, change=change)
        assert job.statuses() == [0, 0], job.log()
        found[name] = rows_of(lines)[0]
    whole = found["few"]["grad_norm"] * found["few"]["tokens"]
    assert found["many"]["grad_norm"] == pytest.approx(whole / (2 * MANY), rel=1e-5)
    assert found["theirs"]["grad_norm"] == pytest.approx(whole, rel=1e-5), "megatron-core counts in 64 bits by now"
