import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GraniteConfig, GraniteForCausalLM

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf import LanguageModel, read_info


def test_info_is_read_from_the_configuration(model_folder: Path, extended_folder: Path) -> None:
    info = read_info(extended_folder)
    assert (info.context_length, info.vocab_size) == (384, 512)
    assert info.rope_scaling is not None
    assert info.rope_scaling["factor"] == 2.0
    assert read_info(model_folder).context_length == 192


def test_padding_on_the_right_changes_nothing_before_it(model: LanguageModel) -> None:
    tokens = torch.arange(30)[None]
    padded = torch.cat([tokens, torch.zeros(1, 20, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model.hidden(padded)[:, :30], model.hidden(tokens))


def test_bf16_is_an_option(model_folder: Path) -> None:
    model = LanguageModel(read_info(model_folder), "bf16")
    hidden = model.hidden(torch.arange(5)[None])
    assert hidden.dtype == torch.bfloat16
    assert model.logits(hidden[0]).dtype == torch.float32


@pytest.fixture
def broken(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "broken")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        read_info(tmp_path / "nowhere")


def test_a_missing_configuration(broken: Path) -> None:
    (broken / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: the model's configuration is missing"):
        read_info(broken)


def test_a_configuration_without_its_length(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    del config["max_position_embeddings"]
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="max_position_embeddings or vocab_size is missing"):
        read_info(broken)


def test_a_missing_weight_is_not_drawn_at_random(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weight model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        LanguageModel(read_info(broken))


def test_a_truncated_weight_file(broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="the model cannot be loaded"):
        LanguageModel(read_info(broken))


def test_a_model_that_scales_its_logits_is_refused(tmp_path: Path) -> None:
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=8.0,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="GraniteForCausalLM changes its logits after the output layer"):
        LanguageModel(read_info(tmp_path))
