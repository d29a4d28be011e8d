"""A run with the recipe by name, exported: config.json says what was trained, and transformers computes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from tests.training.conftest import Train


@pytest.mark.gloo
@pytest.mark.parametrize("options", [["ultralong"], ["yarn", "--rope.temperature", "true"]], ids=["recipe", "hot"])
def test_from_the_recipe_to_logits(train: Train, tmp_path: Path, options: list[str]) -> None:
    kind, *rest = options
    train(1, "--rope.kind", kind, *rest, "--checkpoint.save", str(tmp_path / "run"), "--train.steps", "1")
    convert_megatron_to_hf(load=tmp_path / "run" / "step_000001", output=tmp_path / "hf", verify="logits")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    found = json.loads((tmp_path / "hf" / "verification.json").read_text())
    assert found["query_scale"] == pytest.approx(1.0 if kind == "ultralong" else 1.0693147180559945**2, rel=1e-12)
    assert found["hf_logits_max_abs_diff"] < 2e-5 * found["hf_logits_max_abs"]
