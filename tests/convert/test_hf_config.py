"""The exported config.json says the rope that was trained, as transformers itself computes it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_ultralong.convert.hf_config import served, with_dtype, with_rope
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.scaling import RopeScaling, temperature

OLD: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 256,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rope_scaling": None,
}
"""As transformers 4 writes it; head size 128."""
NEW = {name: value for name, value in OLD.items() if not name.startswith("rope_")} | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "dtype": "float32",
}
"""As transformers 5 writes it."""
LLAMA31 = OLD | {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
BASE = {"base": 500000.0, "original_length": 8192}
ROPES = {
    "none": RopeScaling(**BASE),
    "linear": RopeScaling(**BASE, kind="linear", factor=4.0),
    "ntk": RopeScaling(**BASE, kind="ntk", factor=4.0),
    "llama3": RopeScaling(**BASE, kind="llama3", factor=8.0),
    "yarn paper": RopeScaling(**BASE, kind="yarn", factor=128.0),
    "yarn coded": RopeScaling(**BASE, kind="yarn", form="coded", factor=128.0),
    "yarn coded, hot": RopeScaling(**BASE, kind="yarn", form="coded", factor=128.0, attention_factor=temperature(128)),
    "yarn coded, exact": RopeScaling(**BASE, kind="yarn", form="coded", factor=16.0, beta=32.0, truncate=False),
}


@pytest.mark.parametrize("config", [OLD, NEW, LLAMA31], ids=["transformers 4", "transformers 5", "other rope before"])
@pytest.mark.parametrize("name", ROPES)
def test_transformers_computes_the_same_frequencies(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    rope = ROPES[name]
    (tmp_path / "config.json").write_text(json.dumps(with_rope(config, rope)))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(loaded)
    np.testing.assert_allclose(rotary.inv_freq.numpy(), rope.inverse_frequencies(128), rtol=2e-6)
    assert rotary.attention_scaling == pytest.approx(rope.attention_factor)
    assert loaded.max_position_embeddings == rope.length


@pytest.mark.parametrize("name", [name for name in ROPES if name not in ("ntk", "yarn paper")])
def test_reading_back_gives_the_same_rope(name: str) -> None:
    assert config_json.read(with_rope(NEW, ROPES[name])) == ROPES[name]


def test_no_stale_spelling_is_left() -> None:
    assert with_dtype(with_rope(NEW, ROPES["llama3"]), torch.bfloat16) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 16,
        "hidden_size": 256,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "rope_theta": 500000.0,
        "max_position_embeddings": 65536,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "torch_dtype": "bfloat16",
    }


def test_a_rope_that_was_kept_keeps_its_length() -> None:
    # Llama-3.1 says 131,072 although its factor x original length is 65,536.
    assert with_rope(LLAMA31, config_json.read(LLAMA31)) == LLAMA31


@pytest.mark.parametrize("name", ["llama3", "yarn paper", "yarn coded, hot", "linear", "ntk"])
def test_phi3s_code_takes_any_frequencies_as_longrope(tmp_path: Path, name: str) -> None:
    phi = OLD | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0}
    phi |= {"partial_rotary_factor": 0.75, "rope_scaling": None}
    rope = dataclasses.replace(ROPES[name], rotary_fraction=0.75)
    (tmp_path / "config.json").write_text(json.dumps(with_rope(phi, rope)))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    stated, factor = served(phi, rope)
    for length in (1, rope.length):  # the lists are the same
        frequencies, attention = ROPE_INIT_FUNCTIONS["longrope"](loaded, seq_len=length)
        np.testing.assert_allclose(frequencies.numpy(), rope.inverse_frequencies(96), rtol=2e-6)
        assert attention == pytest.approx(stated.attention_factor, rel=1e-15)
    assert attention**2 * factor == pytest.approx(rope.attention_factor**2, rel=1e-12)
    assert loaded.max_position_embeddings == rope.length
