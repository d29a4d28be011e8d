"""config.json read and written: real dictionaries, every spelling, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_ultralong.errors import UserError
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.scaling import RopeScaling, longrope_attention, temperature
from tests.rope.real_configs import LLAMA31_SCALING, PHI3_LONG, PHI3_SHORT, REAL, head_dim


def transformers_frequencies(config: dict[str, Any], folder: Path, length: int) -> tuple[np.ndarray, float]:
    """What transformers computes from a config.json for a sequence of so many tokens: fp32, as float64."""
    if (config.get("rope_scaling") or {}).get("type") == "su":  # transformers 5 no longer reads its own first name
        config["rope_scaling"]["type"] = "longrope"
    (folder / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = loaded.rope_parameters["rope_type"]
    if kind == "default":
        dim = int(head_dim(config) * loaded.rope_parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
        return (1.0 / loaded.rope_parameters["rope_theta"] ** exponents).double().numpy(), 1.0
    frequencies, attention = ROPE_INIT_FUNCTIONS[kind](loaded, seq_len=length)
    return frequencies.double().numpy(), attention


@pytest.mark.parametrize("name", REAL)
def test_a_real_models_rope_is_read_and_written_as_transformers_computes_it(name: str, tmp_path: Path) -> None:
    config = REAL[name]
    rope = config_json.read(config)
    written = {key: value for key, value in config.items() if not key.startswith("rope_")} | config_json.write(rope)
    assert config_json.read(written) == rope
    dim = rope.rotary_dim(head_dim(config))
    for length in (64, rope.length):
        ours = rope.inverse_frequencies(dim, length)
        for stated in (config, written):
            theirs, attention = transformers_frequencies(copy.deepcopy(stated), tmp_path, length)
            np.testing.assert_allclose(ours, theirs, rtol=3e-6, err_msg=name)  # fp32 of a ramp: see test_rope
            assert rope.attention_factor == pytest.approx(attention, rel=1e-15)
    yarn = rope.kind == "yarn"  # whose maximum is still the original one, and must be the ratio
    assert written["max_position_embeddings"] == (131072 if yarn else config["max_position_embeddings"])


@pytest.mark.parametrize(
    ("name", "factor", "original", "length", "attention"),
    [
        ("Llama-3-8B", 1.0, 8192, 8192, 1.0),
        ("Llama-3.1-8B", 8.0, 8192, 131072, 1.0),  # its own config.json says more than factor x original
        ("Llama-3.2-1B", 32.0, 8192, 131072, 1.0),  # and here less
        ("UltraLong-style", 128.0, 8192, 1048576, 1.0),
        ("Qwen2.5-7B-Instruct, its YaRN entry", 4.0, 32768, 131072, 1.1386294361119891),
        ("Qwen3-8B, its YaRN entry", 4.0, 32768, 131072, 1.1386294361119891),
        ("Phi-3-mini-128k", 32.0, 4096, 131072, 1.1902380714238083),
        ("Phi-4-mini", 32.0, 4096, 131072, 1.1902380714238083),
    ],
)
def test_what_a_real_config_json_says(name: str, factor: float, original: int, length: int, attention: float) -> None:
    rope = config_json.read(REAL[name])
    assert (rope.factor, rope.original_length, rope.length) == (factor, original, length)
    assert rope.attention_factor == pytest.approx(attention, rel=1e-15)


def spellings(rope: RopeScaling) -> list[dict[str, Any]]:
    """What `to_hf` writes, and the same in transformers' other spellings."""
    flat = config_json.write(rope)
    scaling = flat["rope_scaling"] or {"rope_type": "default"}
    kind = scaling.get("rope_type") or scaling["type"]
    body = {name: value for name, value in scaling.items() if name not in ("type", "rope_type")}
    beside = {name: value for name, value in flat.items() if name not in ("rope_scaling", "rope_theta")}
    nested = body | {"rope_type": kind, "rope_theta": rope.base}
    inside = {
        name: beside[name] for name in ("partial_rotary_factor", "original_max_position_embeddings") if name in beside
    }
    return [
        flat,
        flat | {"rope_scaling": body | {"type": kind}},
        flat | {"rope_scaling": body | {"rope_type": kind, "type": kind}},
        beside | {"rope_parameters": nested},
        {"max_position_embeddings": flat["max_position_embeddings"], "rope_parameters": nested | inside},
        flat | {"rope_parameters": nested},
    ]


ROPES = [
    RopeScaling(base=1e4, original_length=4096),
    RopeScaling(base=1e4, original_length=4096, rotary_fraction=0.5),
    RopeScaling(base=1e4, kind="linear", factor=4.0, original_length=2048),
    RopeScaling(base=1e4, kind="dynamic-ntk", factor=2.0, original_length=2048),
    RopeScaling(base=5e5, kind="llama3", factor=8.0, original_length=8192, alpha=1.0, beta=4.0),
    RopeScaling(base=1e6, kind="yarn", form="coded", factor=4.0, original_length=32768, beta=32.0),
    RopeScaling(base=1e6, kind="yarn", form="coded", factor=2.5, original_length=256, truncate=False),
    RopeScaling(base=1e6, kind="yarn", form="coded", factor=8.0, original_length=256, attention_factor=1.3),
    RopeScaling(
        base=1e4, kind="longrope", factor=4.0, original_length=256, attention_factor=longrope_attention(4.0, 256),
        short_factors=(1.0, 1.5), long_factors=(2.0, 3.0), rotary_fraction=0.75,
    ),
    RopeScaling(
        base=1e4, kind="longrope", factor=4.0, original_length=256, attention_factor=1.0,
        short_factors=(1.0, 1.5), long_factors=(2.0, 3.0),
    ),
]  # fmt: skip


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.kind)
def test_every_spelling_reads_back(rope: RopeScaling) -> None:
    for spelling in spellings(rope):
        assert config_json.read(json.loads(json.dumps(spelling))) == rope, spelling


@pytest.mark.parametrize(
    "rope", [rope for rope in ROPES if "factor" in (config_json.write(rope)["rope_scaling"] or {})]
)
def test_the_exports_factor_is_the_ratio_of_its_lengths(rope: RopeScaling) -> None:
    exported = config_json.write(rope)
    if rope.kind == "dynamic-ntk":  # whose formula counts from max_position_embeddings
        assert exported["max_position_embeddings"] == rope.original_length
    else:
        assert exported["max_position_embeddings"] == exported["rope_scaling"]["factor"] * rope.original_length


def test_the_papers_form_is_exported_as_llama3() -> None:
    rope = RopeScaling(base=5e5, kind="yarn", form="paper", factor=128.0, original_length=8192)
    assert config_json.write(rope) == {
        "rope_theta": 5e5,
        "max_position_embeddings": 1048576,
        "rope_scaling": LLAMA31_SCALING | {"factor": 128.0},
    }


@pytest.mark.parametrize("name", ["Llama-3-8B", "Llama-3.1-8B", "Llama-3.2-1B", "Qwen3-8B", "Phi-4-mini"])
def test_a_published_rope_is_written_as_published(name: str) -> None:
    written = config_json.write(config_json.read(REAL[name]))
    assert written == {entry: REAL[name][entry] for entry in written}


def test_an_attention_factor_is_written_for_both_ways_to_read_it() -> None:
    rope = RopeScaling(base=5e5, kind="yarn", form="coded", factor=128.0, original_length=8192)
    scaling = config_json.write(rope)["rope_scaling"]
    assert scaling["attention_factor"] == 1.0  # transformers, vLLM now
    assert temperature(128.0) * scaling["attn_factor"] == pytest.approx(1.0, rel=1e-15)  # SGLang, vLLM before
    assert (
        "attn_factor"
        not in config_json.write(dataclasses.replace(rope, attention_factor=temperature(128.0)))["rope_scaling"]
    )


def test_an_original_length_that_llama_cpp_would_not_guess_stands_where_it_looks() -> None:
    rope = RopeScaling(base=1e6, kind="yarn", form="paper", factor=32.0, original_length=32768)
    assert config_json.write(rope)["original_max_position_embeddings"] == 32768


def test_phi_is_written_with_the_three_keys_that_its_first_reader_takes() -> None:
    written = config_json.write(config_json.read(REAL["Phi-3-mini-128k"]))
    assert written["rope_scaling"] == {"type": "longrope", "short_factor": PHI3_SHORT, "long_factor": PHI3_LONG}
    assert written["original_max_position_embeddings"] == 4096


def test_nothing_said_is_transformers_default() -> None:
    assert config_json.read({}) == RopeScaling(base=1e4, original_length=2048)
    assert config_json.read({"rope_scaling": None, "rope_theta": 1e6}).base == 1e6


@pytest.mark.parametrize(
    ("entry", "attention"),
    [
        ({}, temperature(40.0)),
        ({"attention_factor": 1.25}, 1.25),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),  # DeepSeek-V3
        ({"mscale": 0.707, "mscale_all_dim": 1.0}, temperature(40.0, 0.707) / temperature(40.0)),
        ({"mscale": 0.707}, temperature(40.0)),  # alone it says nothing
        ({"attention_factor": 1.25, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.25),
        ({"factor": None}, temperature(32.0)),  # the ratio of the lengths
    ],
)
def test_yarns_attention_factor(entry: dict[str, Any], attention: float, tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 32} | entry
    config = REAL["Llama-3-8B"] | {"max_position_embeddings": 131072, "rope_scaling": scaling}
    rope = config_json.read(config)
    theirs, scale = transformers_frequencies(config, tmp_path, 0)
    assert rope.attention_factor == pytest.approx(attention, rel=1e-15) == scale
    np.testing.assert_allclose(rope.inverse_frequencies(128), theirs, rtol=1e-6)


def test_phi3s_first_names_for_longrope() -> None:
    config = REAL["Phi-3-mini-128k"]
    published = config_json.read(config)
    for name in ("su", "yarn", "longrope"):
        assert config_json.read(config | {"rope_scaling": config["rope_scaling"] | {"type": name}}) == published


def test_a_config_json_that_declares_too_little_is_exported_with_the_ratio() -> None:
    rope = config_json.read(REAL["Qwen2.5-7B-Instruct, its YaRN entry"])
    assert config_json.write(rope)["max_position_embeddings"] == 131072


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"rope_type": "mrope"}, "config.json: rope_type 'mrope' is not supported; known: default, linear, "),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            "config.json: the llama3 rope entry has no high_freq_factor; ",
        ),
        ({"rope_type": "linear"}, "config.json: the linear rope entry has no factor; "),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "config.json: the longrope entry has no list long_factor; "),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]},
            "rope short_factor has 1 numbers and long_factor 2; ",
        ),
        ({"rope_type": "yarn", "factor": "4"}, "config.json: factor is '4'; give a number."),
        ({"rope_type": "linear", "factor": 0}, "config.json: factor is 0; give 1 or more."),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
            "config.json: original_max_position_embeddings is 0; give 1 or more.",
        ),
        ({"rope_type": "yarn", "factor": math.nan}, "config.json: factor is nan; give a number."),
        (
            {"rope_type": "yarn", "factor": 4.0, "mrope_section": [1]},
            "config.json: rope_parameters has mrope_section, ",
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "attn_factor": 1.2},
            "config.json: attn_factor makes the attention factor 1.36636 in vLLM and SGLang, but transformers takes "
            "1.13863; state attention_factor too, or remove attn_factor.",
        ),
        (
            {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}},
            "config.json: rope_parameters differs by layer type (full_attention, sliding_attention); ",
        ),
        ("yarn", "config.json: rope_parameters is 'yarn'; it must be an object or null."),
    ],
)
def test_a_config_json_that_we_do_not_compute_is_named(entry: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        config_json.read({"rope_parameters": entry})
    assert str(caught.value).startswith(said)


def test_two_entries_that_contradict_each_other_are_named() -> None:
    config = REAL["Llama-3.1-8B"] | {"rope_parameters": LLAMA31_SCALING | {"rope_theta": 500000.0}}
    assert config_json.read(config) == config_json.read(REAL["Llama-3.1-8B"])
    config["rope_parameters"]["factor"] = 16.0
    with pytest.raises(UserError, match="rope_scaling and rope_parameters state different ropes"):
        config_json.read(config)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        (
            RopeScaling(base=1e4, kind="yarn", factor=2.0, original_length=2048, attention_factor=1.07),
            "rope form 'paper' with attention_factor 1.07 has no Hugging Face form; fold it into the query weights, ",
        ),
        (
            RopeScaling(base=1e4, original_length=2048, attention_factor=1.07),
            "rope kind 'none' with attention_factor 1.07 has no Hugging Face form; fold it into the query weights, ",
        ),
        (
            RopeScaling(base=1e4, kind="ntk", factor=2.0, original_length=2048),
            "rope kind 'ntk' depends on the head size, so config.json states it as another rope_theta.",
        ),
    ],
)
def test_a_rope_without_a_hugging_face_form_is_not_exported(rope: RopeScaling, said: str) -> None:
    with pytest.raises(UserError) as caught:
        config_json.write(rope)
    assert str(caught.value).startswith(said)
