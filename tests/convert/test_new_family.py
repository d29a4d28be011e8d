"""A new family is a table and a fixture, nothing else; and the page shows the tables as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.convert.name_tables import rendered
from megatron_ultralong.convert.proof.logits import Verification, compare_logits, verification_tokens
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.tables import FAMILIES as TABLES
from megatron_ultralong.families.tables import LLAMA, QKV_BIAS
from tests.convert import tiny_models
from tests.convert.test_round_trip import assert_same, weights

FIXTURE = ("SeedOss", {"head_dim": 8, "attention_bias": True, "attention_out_bias": False})


def test_a_new_family_is_a_table_and_a_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(tiny_models.FAMILIES, "seed-oss", FIXTURE)
    source, load = tiny_models.build_model(tmp_path / "hf", "seed-oss"), tmp_path / "megatron"
    with pytest.raises(UserError, match=r"architecture 'SeedOssForCausalLM' is not known"):
        convert_hf_to_megatron(hf=source, output=load)
    monkeypatch.setitem(TABLES, "SeedOssForCausalLM", (*LLAMA, QKV_BIAS))
    convert_hf_to_megatron(hf=source, output=load)
    found = compare_logits(Verification(source, load), verification_tokens(source, 64))
    assert found.max_abs_diff < 5e-6 * found.max_abs and found.parted is None
    convert_megatron_to_hf(load=load, output=tmp_path / "back")
    assert_same(weights(source), weights(tmp_path / "back"))


def test_the_page_shows_the_tables_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text(encoding="utf-8")
    assert rendered(page) == page  # else: python -m megatron_ultralong.convert.name_tables docs/conversion.md
