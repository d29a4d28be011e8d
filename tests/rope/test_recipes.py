"""Which rope a run gets: the recipe by name, the spelt-out section, and targets that cannot be reached."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_ultralong.config.sections import RopeConfig
from megatron_ultralong.errors import UserError
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.recipes import LLAMA31, scaled, ultralong
from megatron_ultralong.rope.scaling import RopeScaling, temperature
from tests.rope.real_configs import REAL


def own(name: str) -> RopeScaling:
    return config_json.read(REAL[name])


@pytest.mark.parametrize(("target", "factor"), [(1048576, 128.0), (2097152, 256.0), (4194304, 512.0)])
def test_the_papers_three_models(target: int, factor: float) -> None:
    rope = ultralong(target)
    assert rope == RopeScaling(
        base=5e5, kind="yarn", form="paper", factor=factor, original_length=8192, alpha=1.0, beta=4.0
    )
    assert own("Llama-3.1-8B") == LLAMA31
    assert rope == ultralong(target, own("Llama-3.1-8B"))


def test_from_a_model_without_scaling_the_original_length_is_the_one_it_has() -> None:
    rope = ultralong(1048576, own("Mistral-7B-v0.3"))
    assert (rope.kind, rope.form, rope.factor, rope.original_length) == ("yarn", "paper", 32.0, 32768)
    assert (rope.alpha, rope.beta, rope.attention_factor, rope.base) == (1.0, 4.0, 1.0, 1e6)


def test_from_llama3_the_ramp_is_the_models_own() -> None:
    model = dataclasses.replace(own("Llama-3.2-1B"), alpha=2.0, beta=16.0)
    rope = ultralong(4194304, model)
    assert (rope.factor, rope.original_length, rope.alpha, rope.beta) == (512.0, 8192, 2.0, 16.0)


def test_from_yarn_the_form_and_the_ramp_are_the_models_own() -> None:
    model = own("Qwen3-8B, its YaRN entry")
    rope = ultralong(1048576, model)
    assert rope == dataclasses.replace(model, factor=32.0, attention_factor=temperature(32.0))
    assert (rope.form, rope.beta) == ("coded", 32.0)
    quiet = dataclasses.replace(model, attention_factor=1.0)
    assert ultralong(1048576, quiet).attention_factor == 1.0
    assert ultralong(2097152, ultralong(1048576)) == ultralong(2097152)  # from the recipe's own result


@pytest.mark.parametrize(
    ("target", "model", "said"),
    [
        (4096, "Llama-3.1-8B", "rope.target_length 4096 is below the original length 8192; give a longer one "),
        (
            32768,
            "Llama-3.1-8B",
            "rope.target_length 32768 is 4 times the original length 8192, less than the model's own factor 8; ",
        ),
        (16777217, "Llama-3.1-8B", "rope.target_length 16777217 is beyond 16777216, the last position that "),
        (1048576, "Phi-3-mini-128k", "rope.kind \"ultralong\" has no rule for a model whose own rope is 'longrope'; "),
    ],
)
def test_a_target_that_cannot_be_reached_is_named(target: int, model: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        ultralong(target, own(model))
    assert str(caught.value).startswith(said)


def test_a_run_scales_from_the_models_original_length() -> None:
    model = own("Llama-3.1-8B")
    assert scaled(model, RopeConfig(), 131072) == model
    assert scaled(model, RopeConfig(kind="ultralong"), 1048576) == ultralong(1048576)
    assert scaled(model, RopeConfig(kind="ultralong", target_length=4194304), 8192) == ultralong(4194304)
    assert scaled(model, RopeConfig(kind="yarn"), 1048576) == ultralong(1048576)
    longer = scaled(model, RopeConfig(kind="yarn", form="coded", target_length=4194304, temperature=True), 8192)
    assert (longer.factor, longer.length) == (512.0, 4194304)
    assert longer.attention_factor == pytest.approx(1.62383, abs=1e-5)
    assert scaled(model, RopeConfig(kind="linear", original_length=131072), 262144).factor == 2.0
    assert scaled(own("Phi-4-mini"), RopeConfig(kind="yarn"), 131072).rotary_fraction == 0.75


@pytest.mark.parametrize(
    ("section", "length", "said"),
    [
        (RopeConfig(), 131073, "data.sequence_length 131073 is longer than the model's context of 131072 tokens; "),
        (RopeConfig(kind="yarn", target_length=16384), 16385, "data.sequence_length 16385 is longer than the model's "),
        (RopeConfig(kind="yarn"), 4096, "rope.target_length 4096 is below the original length 8192; "),
    ],
)
def test_a_run_whose_samples_do_not_fit_is_named(section: RopeConfig, length: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        scaled(own("Llama-3.1-8B"), section, length)
    assert str(caught.value).startswith(said)
