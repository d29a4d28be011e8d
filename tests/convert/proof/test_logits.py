"""transformers and megatron-core compute the same, to fp32 rounding, for every family and every rope."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.convert.proof.logits import Verification, compare_logits, verification_tokens
from megatron_ultralong.errors import UserError
from megatron_ultralong.rope.scaling import RopeScaling, temperature
from tests.convert.tiny_models import FAMILIES, Build

BASE: dict[str, Any] = {"base": 10000.0, "original_length": 64, "factor": 8.0}
ROPES = {
    "linear": RopeScaling(**BASE, kind="linear"),
    "ntk": RopeScaling(**BASE, kind="ntk"),
    "yarn paper": RopeScaling(**BASE, kind="yarn"),
    "yarn coded, hot": RopeScaling(**BASE, kind="yarn", form="coded", attention_factor=temperature(8.0)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(build: Build, tmp_path: Path, family: str) -> None:
    source = build(family)
    convert_hf_to_megatron(hf=source, output=tmp_path / "megatron")
    found = compare_logits(Verification(source, tmp_path / "megatron"), verification_tokens(source, 64))
    assert found.tokens == 64
    assert found.max_abs_diff < 5e-6 * found.max_abs


@pytest.mark.parametrize("name", ROPES)
def test_an_extended_model_at_its_new_length(build: Build, tmp_path: Path, name: str) -> None:
    load, output = tmp_path / "megatron", tmp_path / "hf"
    convert_hf_to_megatron(hf=build("llama", torch.bfloat16), output=load)
    dataclasses.replace(Description.read(load), rope=ROPES[name], step=7).write(load)
    convert_megatron_to_hf(load=load, output=output, verify="logits")
    found = json.loads((output / "verification.json").read_text())
    assert (found["tokens"], found["text"], found["tensors"]) == (512, None, 30)
    assert found["hf_logits_max_abs_diff"] < 2e-5 * found["hf_logits_max_abs"]


def test_a_wrong_rope_shows(build: Build, tmp_path: Path) -> None:
    source = build("llama")
    convert_hf_to_megatron(hf=source, output=tmp_path / "megatron")
    description = Description.read(tmp_path / "megatron")
    dataclasses.replace(description, rope=ROPES["linear"]).write(tmp_path / "megatron")
    found = compare_logits(Verification(source, tmp_path / "megatron"), verification_tokens(source, 64))
    assert found.max_abs_diff > 1e-2 * found.max_abs
    assert not found.rounding
    assert found.parted is not None and found.parted.startswith("layer 0: attention (rope, mask or scale);")


def test_tokens_of_a_text(build: Build, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = shutil.copytree(build("llama"), tmp_path / "hf")
    tokenizer = Tokenizer(models.WordLevel({"a": 5, "b": 7, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "text.txt").write_text("a b a c")
    assert verification_tokens(folder, 3, tmp_path / "text.txt").tolist() == [5, 7, 5]
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(UserError, match=r"text\.txt: gives no tokens"):
        verification_tokens(folder, 3, tmp_path / "text.txt")
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        verification_tokens(folder, 3, tmp_path / "none.txt")
