"""A Hugging Face folder read straight into a model gives the bits that conversion and loading give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.checkpoint.loading import load_weights
from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.convert.formats.hf_folder import HfFolder
from megatron_ultralong.convert.hf_into_model import load_hf_weights
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.engine import groups
from megatron_ultralong.errors import UserError
from megatron_ultralong.model.build import build_model
from megatron_ultralong.rope import config_json
from tests.convert.tiny_models import FAMILIES, Build


@pytest.mark.parametrize("family, precision", [*((family, "fp32") for family in FAMILIES), ("qwen3", "bf16")])
def test_the_bits_of_conversion(build: Build, tmp_path: Path, family: str, precision: str) -> None:
    folder = build(family)
    convert_hf_to_megatron(hf=folder, output=tmp_path / "megatron", verify="none")
    description = Description.read(tmp_path / "megatron")
    with groups.single_process(ParallelConfig(device="cpu")):
        one, other = (
            build_model(description.hf_config, description.rope, ParallelConfig(), precision)  # type: ignore[arg-type]
            for _ in range(2)
        )
        load_hf_weights(one, HfFolder.open(folder))
        load_weights(other, tmp_path / "megatron")
        found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys() and len(found) > 10
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected[name]), name


def test_a_folder_whose_tensors_are_others(build: Build) -> None:
    folder = build("llama")
    source = HfFolder.open(folder)
    wider = HfFolder.open(build("llama", intermediate_size=64))
    with groups.single_process(ParallelConfig(device="cpu")):
        model = build_model(source.config, config_json.read(source.config), ParallelConfig(), "fp32")
        wider.config.update(source.config)
        with pytest.raises(UserError, match="has shape"):
            load_hf_weights(model, wider)
