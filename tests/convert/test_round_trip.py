"""Hugging Face -> Megatron -> Hugging Face, bit for bit, for every family; and megatron-core loads the middle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from megatron_ultralong.checkpoint.description import Description, sizes
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.engine import groups
from tests.convert.tiny_models import FAMILIES, Build


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a Hugging Face folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Same names, dtypes and bits."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_exact(build: Build, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = build(family, dtype)
    convert_hf_to_megatron(hf=source, output=tmp_path / "megatron")
    convert_megatron_to_hf(load=tmp_path / "megatron", output=tmp_path / "hf", max_shard_size=30e-6)
    assert_same(weights(source), weights(tmp_path / "hf"))
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=False)
    assert model.dtype == dtype
    original = transformers.AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False)
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens).logits, original(tokens).logits)


def test_megatron_core_loads_it(build: Build, tmp_path: Path) -> None:
    source = build("qwen3")
    convert_hf_to_megatron(hf=source, output=tmp_path / "megatron")
    table = Table.from_hf(json.loads((source / "config.json").read_text()))
    with groups.single_process():
        from megatron_ultralong.engine import mcore

        loaded: dict[str, Any] = mcore.dist_checkpointing.load_plain_tensors(str(tmp_path / "megatron"))
    expected = weights(source)
    for rule in table.rules:
        for layer in range(3 if rule.layered else 1):
            merged = rule.merge([expected[name] for name in rule.names(layer)], table.dimensions)
            assert torch.equal(loaded[rule.megatron][layer] if rule.layered else loaded[rule.megatron], merged)


def test_a_padded_vocabulary_loads_and_is_cut_on_export(build: Build, tmp_path: Path) -> None:
    source = build("llama")
    convert_hf_to_megatron(hf=source, output=tmp_path / "megatron")
    with groups.single_process():
        from megatron.core.dist_checkpointing.mapping import ShardedTensor

        from megatron_ultralong.engine import mcore

        state = mcore.dist_checkpointing.load_plain_tensors(str(tmp_path / "megatron"))
        sharded = {
            key: ShardedTensor.from_rank_offsets(key, value.clone(), allow_shape_mismatch=True)
            for key, value in state.items()
        }
        for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
            padded = torch.full((128, 32), 7.0)
            sharded[key] = ShardedTensor.from_rank_offsets(key, padded, allow_shape_mismatch=True)
        loaded = mcore.dist_checkpointing.load(sharded, str(tmp_path / "megatron"))
        assert torch.equal(loaded["output_layer.weight"][:101], state["output_layer.weight"])
        saved = tmp_path / "trained"
        saved.mkdir()
        optimizer = ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.x", torch.ones(4))
        mcore.dist_checkpointing.save({**sharded, "optimizer": optimizer, "iteration": 3}, str(saved))
    dataclasses.replace(Description.read(tmp_path / "megatron"), files=sizes(saved)).write(saved)
    convert_megatron_to_hf(load=saved, output=tmp_path / "hf")
    assert_same(weights(source), weights(tmp_path / "hf"))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_dtype_is_a_choice_both_ways(build: Build, tmp_path: Path, dtype: Any) -> None:
    source, torch_dtype = build("llama"), {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    convert_hf_to_megatron(hf=source, output=tmp_path / "narrow", dtype=dtype)
    convert_megatron_to_hf(load=tmp_path / "narrow", output=tmp_path / "a")
    convert_hf_to_megatron(hf=source, output=tmp_path / "wide")
    convert_megatron_to_hf(load=tmp_path / "wide", output=tmp_path / "b", dtype=dtype)
    assert_same({name: tensor.to(torch_dtype) for name, tensor in weights(source).items()}, weights(tmp_path / "a"))
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == str(torch_dtype)[6:]


def test_description_says_where_it_came_from(build: Build, tmp_path: Path) -> None:
    source = build("llama", torch.bfloat16)
    convert_hf_to_megatron(hf=source, output=tmp_path / "megatron")
    description = Description.read(tmp_path / "megatron")
    assert (description.step, description.run["precision"], description.run["source"]) == (0, "bf16", str(source))
    assert description.hf_config["architectures"] == ["LlamaForCausalLM"]
    assert description.rope.original_length == 64
