"""What validations have found so far, and when it says nothing of the next ones."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.training.held_out import identity
from megatron_ultralong.training.metrics import ValidationMetrics
from megatron_ultralong.training.validation import Standing

MASKED = ["--validation.sources.0.document_mask", "true"]


def digest(workspace: Path, *more: str, index: str = "packed") -> str:
    words = ["--validation.sources.0.index", str(workspace / index), "--validation.samples", "5"]
    config = load_config(workspace / "run.toml", [*words, "--validation.needles", "48", "64", *more])
    run: Any = types.SimpleNamespace(config=config, held_out=[PackedDataset(workspace / index)])
    return identity(run)


def test_only_what_is_read_and_how_makes_other_samples(workspace: Path) -> None:
    own = digest(workspace)
    for more in (["--validation.samples", "4"], MASKED, ["--validation.needle_keys", "3"], ["--validation.needles="]):
        assert digest(workspace, *more) != own
    assert digest(workspace, index="packed_chats") != own
    for more in (["--validation.bounds", "32"], ["--validation.interval", "1"], ["--validation.warn", "1"]):
        assert digest(workspace, *more) == own
    everything = digest(workspace, "--validation.samples", "0")
    assert digest(workspace, "--validation.samples", "1000") == everything


def test_what_other_samples_showed_is_forgotten() -> None:
    """Beside it their losses are no rise and no gain."""
    standing = Standing()
    assert not standing.take_up("loss/a", "one")
    assert not list(standing.note(ValidationMetrics(2, {"loss/a": 2.0, "loss/b": 1.0}, {}, 1.0), 0.05))
    assert not standing.take_up("loss/a", "one") and (standing.best, standing.best_step) == (2.0, 2)
    assert len(list(standing.note(ValidationMetrics(3, {"loss/a": 3.0}, {}, 1.0), 0.05))) == standing.unimproved == 1
    assert not standing.take_up("loss/b", "one")
    assert (standing.best, standing.unimproved, standing.lowest["loss/a"]) == (None, 0, 2.0)
    assert standing.take_up("loss/b", "other")
    assert not list(standing.note(ValidationMetrics(4, {"loss/a": 3.0, "loss/b": 4.0}, {}, 1.0), 0.05))
    assert (standing.best, standing.best_step, standing.unimproved) == (4.0, 4, 0)
