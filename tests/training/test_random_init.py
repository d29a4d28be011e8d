"""Weights drawn at random: no two tensors are the same numbers, on whatever pipeline stage they were drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.training.jobs import Job


@pytest.mark.gloo
def test_pipeline_stages_draw_their_own(begin: Callable[..., Job], tmp_path: Path) -> None:
    words = ["--model.init", "random", "--checkpoint.load", "none", "--optimizer.learning_rate", "0"]
    save = ["--checkpoint.save", str(tmp_path / "run"), "--train.steps", "1"]
    job = begin(2, *words, *save, "--parallel.pipeline", "2")
    assert job.statuses() == [0, 0], job.log()
    dcp_to_torch_save(tmp_path / "run/step_000001", tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    drawn = {name: value for name, value in whole.items() if name.endswith(".weight") and value.dim() >= 2}
    drawn = {name: value for name, value in drawn.items() if not name.startswith("optimizer.")}
    assert len(drawn) >= 6
    drawn_from = {}  # the first numbers of the generator: some tensors are those of others times a factor
    for name, value in drawn.items():
        for place, part in enumerate(value if value.dim() == 3 else [value]):  # [layers, ...]
            first = part.flatten()[:8].double()
            drawn_from[f"{name} {place}"] = tuple((first / first.norm()).mul(1e4).round().tolist())
    assert len(drawn_from) == 2 + 4 * 4 and len(set(drawn_from.values())) == len(drawn_from), drawn_from
