"""What is read from config.json, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.errors import UserError
from megatron_ultralong.model.build import transformer_config
from megatron_ultralong.rope.config_json import head_dim

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
}


def test_llama_8b_on_256_gpus() -> None:
    parallel = ParallelConfig(tensor=8, context=4, sequence_parallel=True, recompute="full")
    config = transformer_config(LLAMA, parallel, "bf16")
    assert (config.num_layers, config.hidden_size, config.ffn_hidden_size) == (32, 4096, 14336)
    assert (config.num_attention_heads, config.num_query_groups, config.kv_channels) == (32, 8, 128)
    assert (config.normalization, config.gated_linear_unit, config.add_qkv_bias) == ("RMSNorm", True, False)
    assert (config.tensor_model_parallel_size, config.context_parallel_size) == (8, 4)
    assert config.calculate_per_token_loss
    assert config.recompute_granularity == "full"


@pytest.mark.parametrize(("explicit", "wanted"), [(None, 128), (64, 64)])
def test_head_dim(explicit: int | None, wanted: int) -> None:
    assert head_dim({**LLAMA, "head_dim": explicit}) == wanted


@pytest.mark.parametrize("change", [{"architectures": ["GPT2LMHeadModel"]}, {"hidden_act": "gelu"}])
def test_other_models_are_refused_by_name(change: dict[str, Any]) -> None:
    (value,) = change.values()
    with pytest.raises(UserError, match=value if isinstance(value, str) else value[0]):
        transformer_config({**LLAMA, **change}, ParallelConfig(), "bf16")
