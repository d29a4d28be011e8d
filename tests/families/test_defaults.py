"""What a config.json means where it says nothing is what the oldest and the newest transformers make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import LOADERS, check_window, completed, window_of
from megatron_ultralong.families.rules import Dimensions
from megatron_ultralong.families.tables import FAMILIES, rules_of
from megatron_ultralong.rope import config_json
from tests.convert import oldest
from tests.convert.loaded import answer

SIZES: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 32, "num_hidden_layers": 3}
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "sizes": SIZES,
    "null heads": {**SIZES, "num_key_value_heads": None},
    "null head": {**SIZES, "head_dim": None},
    "null window": {"sliding_window": None},
    "a window": {**SIZES, "sliding_window": 7, "max_position_embeddings": 64},
    "a window in use": {**SIZES, "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
    "a window in use by no layer": {**SIZES, "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 3},
    "layer types": {**SIZES, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    | {"sliding_window": 7, "use_sliding_window": True},
    "null size": {"hidden_size": None},
    "null eps": {"rms_norm_eps": None},
    "null length": {"max_position_embeddings": None},
    "null act": {"hidden_act": None},
    "null tie": {"tie_word_embeddings": None},
    "tied": {"tie_word_embeddings": True},
}


def run_newest(jobs: list[dict[str, Any]]) -> list[Any]:
    return [answer(job) for job in jobs]


def window(entries: dict[str, Any]) -> int | None:
    """The narrowest window of what transformers loaded, by its modelling code."""
    if "layer_types" in entries and entries["model_type"] in ("qwen2", "qwen3"):
        return entries["sliding_window"] if "sliding_attention" in entries["layer_types"] else None
    return entries.get("sliding_window")


@pytest.mark.parametrize("run", [run_newest, oldest.run], ids=["newest", "oldest"])
def test_the_effective_configuration_is_transformers_own(
    run: Callable[[list[dict[str, Any]]], list[Any]], tmp_path: Path
) -> None:
    configs, jobs = {}, []
    for architecture, loader in LOADERS.items():
        for case, entries in CASES.items():
            folder = tmp_path / f"{loader.model_type} {case}"
            folder.mkdir()
            configs[folder] = {"architectures": [architecture], "model_type": loader.model_type, **entries}
            (folder / "config.json").write_text(json.dumps(configs[folder]))
            jobs.append({"config": str(folder)})
    refused = 0
    for (folder, config), theirs in zip(configs.items(), run(jobs), strict=True):
        try:
            ours = completed(config)
        except UserError as error:
            assert "is null, for which its loader has no meaning" in str(error)
            refused += 1
            continue
        if not isinstance(theirs, dict):  # the newest refuses what the oldest reads as it is read here
            assert folder.name == "mistral null heads" and run is run_newest, theirs
            continue
        if theirs["model_type"] == "ministral":  # what the newest makes of a Mistral with layer types: another family
            assert folder.name == "mistral layer types" and window_of(ours) == 7
            continue
        sliding = folder.name.startswith("llama") and "sliding_window" in config
        for name, value in theirs.items():
            if name in ("sliding_window", "layer_types", "rope_theta"):  # compared by what they do, below
                continue
            if name == "head_dim" and value is None:  # an old Mistral, whose modelling code divides
                value = theirs["hidden_size"] // theirs["num_attention_heads"]
            assert ours[name] == value, (folder.name, name)
        assert sliding or window_of(ours) == window(theirs), folder.name
        assert completed(ours) == ours
        dimensions = Dimensions.from_hf(ours)
        heads = theirs["num_attention_heads"]
        assert (dimensions.K, dimensions.H) == (
            theirs["num_key_value_heads"],
            theirs.get("head_dim") or theirs["hidden_size"] // heads,
        )
        rope = config_json.read({**ours, "sliding_window": None, "layer_types": None})
        assert (rope.base, rope.length) == (theirs["rope_theta"], theirs["max_position_embeddings"])
    assert refused == 5 * len(LOADERS) + 1  # and qwen3's head_dim


def test_every_family_has_a_loader() -> None:
    assert LOADERS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("architecture", LOADERS)
def test_a_config_that_says_next_to_nothing_is_read(architecture: str) -> None:
    loader = LOADERS[architecture]
    by_type, by_name = ({"model_type": loader.model_type}, {"architectures": [architecture]})
    assert completed(by_type) == completed(by_name)
    if architecture != "MistralForCausalLM":
        rules_of(by_type)


def test_a_mistral_that_says_no_window_attends_to_4096_tokens() -> None:
    config = {"architectures": ["MistralForCausalLM"]}
    said = r"sliding_window 4096 \(stated, or what mistral takes where nothing is\) is less than the context of 131072"
    with pytest.raises(UserError, match=said):
        rules_of(config)
    with pytest.raises(UserError, match="less than the context of 131072 tokens"):
        config_json.read(config)
    rules_of({**config, "sliding_window": None})
    rules_of({**config, "max_position_embeddings": 4096})


def test_a_window_is_compared_with_the_context_that_the_rope_has() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = {"model_type": "qwen2", "sliding_window": 32768, "use_sliding_window": True, "rope_scaling": yarn}
    rules_of({**config, "rope_scaling": None, "max_window_layers": 8})
    with pytest.raises(UserError, match=r"sliding_window 32768 .* is less than the context of 131072 tokens"):
        config_json.read({**config, "max_window_layers": 8})
    assert config_json.read({**config, "max_window_layers": 32}).length == 131072


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"sliding_window": 0}, "sliding_window is 0; give null or tokens"),
        ({"sliding_window": True}, "sliding_window is True; give null or tokens"),
        ({"layer_types": ["chunked"], "use_sliding_window": True}, "layer_types is .'chunked'.; known: full_attention"),
        ({"layer_types": ["sliding_attention"]}, "layer_types has sliding_attention, but there is no sliding_window"),
        ({"model_type": "llama"}, "model_type is 'llama' and architectures 'Qwen2ForCausalLM', of which loaders take"),
    ],
)
def test_half_of_a_setting_is_named(entries: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_window(completed({"architectures": ["Qwen2ForCausalLM"], **entries}), 64)
