"""transformers and megatron-core compute the same, to fp32 rounding, for every family and every rope."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.convert.proof.logits import (
    Verification,
    compare_logits,
    verification_tokens,
    verify_logits,
)
from megatron_ultralong.errors import UserError
from megatron_ultralong.rope.scaling import RopeScaling, temperature
from tests.convert.tiny_models import FAMILIES, Build

TOOLS = (convert_hf_to_megatron, convert_megatron_to_hf)
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
    assert not found.same
    assert found.parted is not None and found.parted.startswith("layer 0: attention (rope, mask or scale);")


SHORT = 16


def other_rope(folder: Path, **changes: Any) -> None:
    """Change the rope that a checkpoint says it was trained with."""
    description = Description.read(folder)
    dataclasses.replace(description, rope=dataclasses.replace(description.rope, **changes)).write(folder)


def other_config(folder: Path, **changes: Any) -> None:
    """Change the config.json that a checkpoint is built from."""
    description = Description.read(folder)
    dataclasses.replace(description, hf_config={**description.hf_config, **changes}).write(folder)


ATTENTION = "layer 0: attention (rope, mask or scale)"
FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "rope base, 1 %": (
        "llama",
        lambda load: other_rope(load, base=10100.0),
        ATTENTION,
    ),
    "rope factor, 1 %": (
        "linear",
        lambda load: other_rope(load, factor=2.02),
        ATTENTION,
    ),
    "temperature, 0.1 %": (
        "llama",
        lambda load: other_rope(load, kind="yarn", form="coded", factor=1.0, attention_factor=1.0005),
        ATTENTION,
    ),
    "norm epsilon, tenfold": (
        "llama",
        lambda load: other_config(load, rms_norm_eps=1e-5),
        "layer 0: model.layers.0.input_layernorm.weight",
    ),
    "norm epsilon of values of size 1": (
        "large",
        lambda load: other_config(load, rms_norm_eps=1e-5),
        "layer 0: model.layers.0.input_layernorm.weight",
    ),
    "norm epsilon of heads": (
        "qwen3",
        lambda load: other_config(load, rms_norm_eps=2e-6),
        "layer 0: model.layers.0.input_layernorm.weight",
    ),
}


def faulty(build: Build, kind: str, folder: Path) -> Path:
    """A model to be read wrongly: "large" has embeddings of size 1, so that an epsilon hardly matters."""
    if kind == "linear":
        return build("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, **SHORTENED)
    if kind != "large":
        return build(kind)
    shutil.copytree(build("llama"), folder)
    for path in folder.glob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        path.unlink()  # load_file maps it
        tensors |= {name: tensor * 10 for name, tensor in tensors.items() if "embed" in name}
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


SHORTENED: dict[str, Any] = {"original_max_position_embeddings": 32}


@pytest.mark.parametrize("name", FAULTS)
def test_a_small_fault_shows_on_a_short_text_and_is_named(build: Build, tmp_path: Path, name: str) -> None:
    family, spoil, said = FAULTS[name]
    source, load = faulty(build, family, tmp_path / "hf"), tmp_path / "megatron"
    convert_hf_to_megatron(hf=source, output=load)
    verify_logits(Verification(source, load, length=SHORT))
    spoil(load)
    with pytest.raises(UserError, match=f"which is not rounding; they part at {re.escape(said)}"):
        verify_logits(Verification(source, load, length=SHORT))


def test_one_weight_of_many_shows(build: Build, tmp_path: Path) -> None:
    source, load = shutil.copytree(build("llama"), tmp_path / "hf"), tmp_path / "megatron"
    convert_hf_to_megatron(hf=source, output=load)
    name = "model.layers.2.mlp.up_proj.weight"
    path = next(path for path in source.glob("*.safetensors") if name in load_file(path))
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    tensors[name][7, 3] *= 1.001
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"they part at layer 2: {re.escape(name)} "):
        verify_logits(Verification(source, load, length=SHORT))


def test_the_length_is_bounded_by_the_context(build: Build, tmp_path: Path) -> None:
    convert_hf_to_megatron(hf=build("llama"), output=tmp_path / "megatron")
    for length in (2048, 0):
        assert verify_logits(Verification(build("llama"), tmp_path / "megatron", length=length))["tokens"] == 64
    defaults = [inspect.signature(tool).parameters["verify_length"].default for tool in TOOLS]
    assert defaults == [2048, 2048]  # and not the whole context, which takes days at 1M


@pytest.mark.parametrize("dtype", ["keep", "bf16"])
def test_a_temperature_folded_in_half_precision_is_rounding(build: Build, tmp_path: Path, dtype: Any) -> None:
    load = tmp_path / "megatron"
    convert_hf_to_megatron(hf=build("qwen2", torch.bfloat16 if dtype == "keep" else torch.float32), output=load)
    other_rope(load, kind="yarn", factor=8.0, attention_factor=temperature(8.0))
    convert_megatron_to_hf(load=load, output=tmp_path / "hf", dtype=dtype, verify="logits", verify_length=64)


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
