"""A temperature that config.json cannot state comes out of the exported weights: the logits are those of the run."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.folding import QueryFold
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.convert.proof.logits import Verification, compare_logits, verification_tokens
from megatron_ultralong.families.rules import Dimensions, Rule
from megatron_ultralong.families.tables import LLAMA, PHI3, Q_NORM
from megatron_ultralong.rope.scaling import RopeScaling, temperature
from tests.convert.tiny_models import Build

HOT: dict[str, Any] = {"base": 10000.0, "original_length": 64, "factor": 8.0, "attention_factor": temperature(8.0)}
ROPES = {
    "paper": RopeScaling(**HOT, kind="yarn"),
    "llama3": RopeScaling(**HOT, kind="llama3"),
    "linear": RopeScaling(**HOT, kind="linear"),
    "ntk": RopeScaling(**HOT, kind="ntk"),
}


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("llama", "paper"),
        ("llama", "llama3"),
        ("llama", "linear"),
        ("llama", "ntk"),
        ("qwen2", "paper"),
        ("qwen3", "paper"),
    ],
)
def test_the_logits_are_those_of_the_run(
    build: Build, tmp_path: Path, family: str, rope: str, caplog: pytest.LogCaptureFixture
) -> None:
    load, output = tmp_path / "megatron", tmp_path / "hf"
    convert_hf_to_megatron(hf=build(family), output=load)
    dataclasses.replace(Description.read(load), rope=ROPES[rope]).write(load)
    with caplog.at_level(logging.INFO):
        convert_megatron_to_hf(load=load, output=output, verify="logits", verify_length=256)
    found = json.loads((output / "verification.json").read_text())
    assert found["hf_logits_max_abs_diff"] < 2e-5 * found["hf_logits_max_abs"]
    assert found["query_scale"] == pytest.approx(1.2079441541679836**2, rel=1e-15)
    assert "its 1.45913 is folded into the queries' weights" in caplog.text

    cold = dataclasses.replace(Description.read(load), rope=dataclasses.replace(ROPES[rope], attention_factor=1.0))
    cold.write(load)  # the temperature is no rounding: without it the logits are others
    other = compare_logits(Verification(output, load, folded=True), verification_tokens(output, 256))
    assert other.max_abs_diff > 1e-2 * other.max_abs


def test_phi3_states_its_frequencies_as_lists_and_folds_the_rest(build: Build, tmp_path: Path) -> None:
    load, output = tmp_path / "megatron", tmp_path / "hf"
    convert_hf_to_megatron(hf=build("phi3"), output=load)
    dataclasses.replace(Description.read(load), rope=ROPES["paper"]).write(load)
    convert_megatron_to_hf(load=load, output=output, verify="logits", verify_length=256)
    found = json.loads((output / "verification.json").read_text())
    assert found["query_scale"] == pytest.approx(0.972753, rel=1e-6)  # (0.1 ln 8 + 1)^2 / (1 + ln 8 / ln 64)
    assert found["hf_logits_max_abs_diff"] < 2e-5 * found["hf_logits_max_abs"]


def test_a_half_precision_export_is_rounded_once(build: Build, tmp_path: Path) -> None:
    load = tmp_path / "megatron"
    convert_hf_to_megatron(hf=build("llama", torch.bfloat16), output=load)
    dataclasses.replace(Description.read(load), rope=ROPES["paper"]).write(load)
    weights = {}
    for dtype in ("fp32", "keep"):
        convert_megatron_to_hf(load=load, output=tmp_path / dtype, dtype=dtype)  # type: ignore[arg-type]
        from megatron_ultralong.convert.formats.hf_folder import HfFolder

        weights[dtype] = HfFolder.open(tmp_path / dtype).rows("model.layers.0.self_attn.q_proj.weight", 0, 32)
    assert weights["keep"].dtype == torch.bfloat16
    assert torch.equal(weights["keep"], weights["fp32"].bfloat16())


def rule_of(table: tuple[Rule, ...], key: str) -> Rule:
    return next(rule for rule in table if rule.megatron.endswith(key))


def test_only_rotated_channels_of_queries_are_scaled() -> None:
    sizes = Dimensions(layers=1, V=8, D=3, F=4, N=4, K=2, H=4)
    fold, qkv = QueryFold(factor=2.0, rotary_dim=2, normed=False), rule_of(LLAMA, "linear_qkv.weight")
    queries, *others = [fold.scale(qkv, part, sizes) for part in range(3)]
    assert queries is not None and queries.tolist() == [2, 2, 1, 1] * 4
    assert others == [None, None]
    fused = fold.scale(rule_of(PHI3, "linear_qkv.weight"), 0, sizes)
    assert fused is not None and fused.tolist() == [2, 2, 1, 1] * 4 + [1] * 16
    for key in ("linear_qkv.layer_norm_weight", "linear_proj.weight", "linear_fc1.weight"):
        assert fold.scale(rule_of(LLAMA, key), 0, sizes) is None
    assert fold.scale(Q_NORM, 0, sizes) is None
    normed = QueryFold(factor=2.0, rotary_dim=2, normed=True)
    scale = normed.scale(Q_NORM, 0, sizes)
    assert scale is not None and scale.tolist() == [2, 2, 1, 1]
    assert normed.scale(qkv, 0, sizes) is None
