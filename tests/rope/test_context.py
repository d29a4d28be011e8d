"""The context a model was made for, under every public convention; where it cannot be known, a question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.errors import UserError
from megatron_ultralong.rope import config_json
from tests.convert.tiny_models import build_model

LINEAR = {"type": "linear", "factor": 8.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def config(maximum: int, scaling: dict[str, Any] | None, **rest: Any) -> dict[str, Any]:
    return {"model_type": "llama", "max_position_embeddings": maximum, "rope_scaling": scaling, **rest}


@pytest.mark.parametrize(
    ("given", "original", "length"),
    [
        (config(4096, None), 4096, 4096),
        # linear, max_position_embeddings raised (Together's 32K Llama) or not (Vicuna 16K, LongChat 32K)
        (config(32768, {**LINEAR, "original_max_position_embeddings": 4096}), 4096, 32768),
        (config(4096, {**LINEAR, "original_max_position_embeddings": 4096}), 4096, 32768),
        (config(32768, LINEAR, original_max_position_embeddings=4096), 4096, 32768),
        (config(4096, LINEAR, max_sequence_length=32768), 4096, 32768),
        (config(32768, LINEAR, max_sequence_length=32768), 4096, 32768),
        (config(32768, LINEAR, model_max_length=32768), 4096, 32768),
        (config(4096, {"type": "linear", "factor": 1.0}), 4096, 4096),
        # dynamic: the formula counts from max_position_embeddings, whatever else is said
        (config(32768, {"type": "dynamic", "factor": 2.0}), 32768, 65536),
        (config(8192, {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4096}), 8192, 16384),
        # yarn: with the original length, raised or not, and without it, when it is max_position_embeddings
        (config(131072, {**YARN, "original_max_position_embeddings": 32768}), 32768, 131072),
        (config(32768, {**YARN, "original_max_position_embeddings": 32768}), 32768, 131072),
        (config(40960, {**YARN, "original_max_position_embeddings": 32768}), 32768, 131072),
        (config(163840, {**YARN, "factor": 40.0, "original_max_position_embeddings": 4096}), 4096, 163840),
        (config(32768, YARN), 32768, 131072),
        # llama3: the factor is read as it stands, and the declared maximum counts
        (config(131072, {**LLAMA3, "original_max_position_embeddings": 8192}), 8192, 131072),
        (config(131072, {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}), 8192, 131072),
    ],
)
def test_the_context_is_what_the_loaders_formula_says(given: dict[str, Any], original: int, length: int) -> None:
    rope = config_json.read(given)
    assert (rope.original_length, rope.length) == (original, length)
    written = {"model_type": "llama", **config_json.write(rope)}
    assert config_json.read(json.loads(json.dumps(written))) == rope  # and an export leaves no question


def test_what_cannot_be_known_is_asked_for(tmp_path: Path) -> None:
    given = config(4096, LINEAR)
    said = (
        r"the rope is linear by 8 and max_position_embeddings 4096, but not whether .*; state "
        r"original_max_position_embeddings 4096 or 512 there, or rope.original_length \(--original-length"
    )
    for unclear in (given, {**given, "max_sequence_length": 2048}):
        with pytest.raises(UserError, match=said):
            config_json.read(unclear)
    for known, length in ((4096, 32768), (512, 4096)):
        assert config_json.read(given, known).length == length
    other = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}
    assert config_json.read(config(4096, other), 512).original_length == 2048  # config.json says it: it counts

    hf = build_model(
        tmp_path / "hf", "llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    )
    with pytest.raises(UserError, match="the rope is linear by 2 and max_position_embeddings 64"):
        convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron", original_length=64)
    assert Description.read(tmp_path / "megatron").rope.length == 128


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            config(4096, {"rope_type": "default", "rope_theta": 1e6}, rope_theta=1e4),
            "rope_theta is 10000, and 1e\\+06 in the rope's entry, of which loaders take one or the other",
        ),
        (
            config(65536, {**YARN, "original_max_position_embeddings": 8192}, original_max_position_embeddings=4096),
            "original_max_position_embeddings is 4096, and 8192 in the rope's entry",
        ),
        (config(4096, {**LINEAR, "rope_type": "dynamic"}), "rope_type is 'dynamic' and type 'linear', of which"),
        (
            config(4096, None, partial_rotary_factor=0.5),
            "partial_rotary_factor is 0.5, but LlamaForCausalLM rotates whole",
        ),
        (
            {
                "model_type": "phi3",
                "rope_scaling": {**YARN, "rope_type": "linear"},
                "original_max_position_embeddings": 4096,
            },
            "Phi3ForCausalLM takes no rope of kind 'linear'; known: none, longrope",
        ),
    ],
)
def test_what_loaders_read_differently_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config_json.read(given)


def test_rope_theta_in_rope_parameters_alone() -> None:
    given = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert config_json.read(given).base == 5e5
    assert config_json.read({**given, "rope_theta": 5e5}).base == 5e5
