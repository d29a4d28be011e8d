"""RopeScaling against transformers' own functions, the formulas written out, and numbers worked by hand."""

import itertools
import math

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ultralong.config import RopeConfig
from megatron_ultralong.errors import UserError
from megatron_ultralong.model.rope import RopeScaling, scaled, temperature

BASES = (1e4, 5e5, 1e6, 1e9)
HEAD_DIMS = (64, 80, 128)
FACTORS = (1.0, 2.0, 8.5, 128.0, 512.0)
LENGTHS = (2048, 8192, 131072)
LLAMA31 = {
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def transformers_rope(rope: RopeScaling, head_dim: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor that transformers computes from our export."""
    hf = rope.to_hf()
    parameters = (hf["rope_scaling"] or {"rope_type": "default"}) | {"rope_theta": hf["rope_theta"]}
    config = LlamaConfig(
        head_dim=head_dim, rope_parameters=parameters, max_position_embeddings=hf["max_position_embeddings"]
    )
    module = LlamaRotaryEmbedding(config)
    return module.inv_freq.double().numpy(), module.attention_scaling


def plain(base: float, dim: int) -> np.ndarray:
    return base ** (-np.arange(0, dim, 2) / dim)


@pytest.mark.parametrize(
    ("kind", "form", "beta", "tolerance"),
    [
        ("none", "paper", 4.0, 1e-6),
        ("linear", "paper", 4.0, 1e-6),
        ("yarn", "coded", 4.0, 1e-6),
        ("yarn", "coded", 32.0, 1e-6),
        # transformers forms the ramp in fp32: near rotations = alpha its rounding counts s-fold
        ("llama3", "paper", 4.0, 3e-6),
        ("yarn", "paper", 4.0, 3e-6),
        ("yarn", "paper", 32.0, 3e-6),
    ],
)
def test_frequencies_are_those_of_transformers(kind, form, beta, tolerance):
    for base, dim, factor, length in itertools.product(BASES, HEAD_DIMS, FACTORS, LENGTHS):
        rope = RopeScaling(
            base=base,
            kind=kind,
            factor=1.0 if kind == "none" else factor,
            original_length=length,
            form=form,
            beta=beta,
        )
        ours, (theirs, attention) = rope.inverse_frequencies(dim), transformers_rope(rope, dim)
        assert np.all(np.abs(ours - theirs) <= 1e-6 * plain(base, dim)), rope
        assert np.all(np.abs(ours - theirs) <= tolerance * ours), rope
        assert attention == 1.0


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("attention", [None, 1.0, 1.25])
def test_yarn_without_an_attention_factor_gets_transformers_own(factor, truncate, attention):
    entry = {"rope_type": "yarn", "rope_theta": 5e5, "factor": factor, "original_max_position_embeddings": 8192}
    entry |= {"truncate": truncate} | ({} if attention is None else {"attention_factor": attention})
    config = {"rope_parameters": entry, "max_position_embeddings": round(8192 * factor)}
    rope = RopeScaling.from_hf(config)
    frequencies, scaling = ROPE_INIT_FUNCTIONS["yarn"](LlamaConfig(head_dim=128, **config))
    assert rope.attention_factor == pytest.approx(scaling, rel=1e-15)
    np.testing.assert_allclose(rope.inverse_frequencies(128), frequencies.double().numpy(), rtol=1e-6)


@pytest.mark.parametrize("factor", FACTORS)
def test_ntk_is_transformers_dynamic_rule_at_full_length(factor):
    config = LlamaConfig(
        head_dim=128,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 5e5, "factor": 1.0},
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=round(8192 * factor))
    ours = RopeScaling(base=5e5, kind="ntk", factor=factor, original_length=8192).inverse_frequencies(128)
    np.testing.assert_allclose(ours, theirs.double().numpy(), rtol=1e-6)
    assert ours[0] == 1.0 and ours[-1] == pytest.approx(plain(5e5, 128)[-1] / factor, rel=1e-12)


def llama3_by_wavelength(base: float, dim: int, factor: float, length: int, low: float, high: float) -> list[float]:
    """Llama-3.1's rule as Meta states it, by wavelength and one frequency at a time."""
    out = []
    for theta in plain(base, dim):
        wavelength = 2 * math.pi / theta
        if wavelength < length / high:
            out.append(theta)
        elif wavelength > length / low:
            out.append(theta / factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            out.append((1 - smooth) * theta / factor + smooth * theta)
    return out


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("factor", FACTORS)
def test_the_papers_yarn_is_llama3_with_the_same_factor(base, dim, factor):
    given = {"base": base, "factor": factor, "original_length": 8192, "alpha": 1.0, "beta": 4.0}
    paper = RopeScaling(kind="yarn", form="paper", **given).inverse_frequencies(dim)
    assert np.array_equal(paper, RopeScaling(kind="llama3", **given).inverse_frequencies(dim))
    np.testing.assert_allclose(paper, llama3_by_wavelength(base, dim, factor, 8192, 1.0, 4.0), rtol=1e-12)


@pytest.mark.parametrize(
    ("form", "index", "ratio"),
    [
        ("paper", 0, 1.0),  # 1303.8 rotations in 8,192 tokens
        ("paper", 28, 1.0),  # 4.19 rotations, above beta
        ("paper", 34, 0.0817568),  # 1.2237 rotations: 0.07458 kept
        ("paper", 35, 1 / 128),  # 0.9969 rotations, below alpha
        ("paper", 63, 1 / 128),
        # 4 and 1 rotations fit at 28.22 and 34.98, rounded outwards to 28 and 35: a ramp of sevenths
        ("coded", 28, 1.0),
        ("coded", 29, 6 / 7 + 1 / 7 / 128),
        ("coded", 34, 1 / 7 + 6 / 7 / 128),
        ("coded", 35, 1 / 128),
    ],
)
def test_llama31_to_a_million_tokens_by_hand(form, index, ratio):
    rope = RopeScaling(base=5e5, kind="yarn", form=form, factor=128.0, original_length=8192)
    assert rope.inverse_frequencies(128)[index] / plain(5e5, 128)[index] == pytest.approx(ratio, rel=1e-6)


def test_a_head_of_four_by_hand():
    given = {"base": 100.0, "factor": 4.0, "original_length": 20}  # theta = 1, 0.1: 3.1831 and 0.3183 rotations
    expected = {
        "none": [1.0, 0.1],
        "linear": [0.25, 0.025],
        "ntk": [1.0, 0.025],  # base' = 100 x 4^(4 / 2) = 1600
        "llama3": [0.7957747, 0.025],  # kept (3.1831 - 1) / 3 = 0.7277
    }
    for kind, frequencies in expected.items():
        np.testing.assert_allclose(RopeScaling(kind=kind, **given).inverse_frequencies(4), frequencies, rtol=1e-7)


def test_without_truncation_the_ramp_starts_between_dimensions():
    rope = RopeScaling(base=5e5, kind="yarn", form="coded", factor=128.0, original_length=8192, truncate=False)
    low, high = (128 * math.log(8192 / (2 * math.pi * rotations)) / (2 * math.log(5e5)) for rotations in (4, 1))
    assert (round(low, 2), round(high, 2)) == (28.22, 34.98)
    kept = rope.kept_share(128)
    assert kept[28] == 1.0 and kept[35] == 0.0
    assert kept[34] == pytest.approx((high - 34) / (high - low), rel=1e-12)


@pytest.mark.parametrize(("factor", "expected"), [(128, 1.4852), (256, 1.5545), (512, 1.6238), (1, 1.0), (0.5, 1.0)])
def test_temperature(factor, expected):
    assert temperature(factor) == pytest.approx(expected, abs=5e-5)


ROPES = [
    RopeScaling(base=1e4, original_length=4096),
    RopeScaling(base=1e4, kind="linear", factor=4.0, original_length=2048),
    RopeScaling(base=5e5, kind="llama3", factor=8.0, original_length=8192, alpha=1.0, beta=4.0),
    RopeScaling(base=1e6, kind="yarn", form="coded", factor=4.0, original_length=32768, beta=32.0),
    RopeScaling(base=1e6, kind="yarn", form="coded", factor=2.5, original_length=256, truncate=False),
    RopeScaling(base=1e6, kind="yarn", form="coded", factor=8.0, original_length=256, attention_factor=1.3),
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.kind)
def test_what_is_exported_reads_back(rope):
    flat = rope.to_hf()
    nested = {
        "max_position_embeddings": flat["max_position_embeddings"],
        "rope_parameters": (flat["rope_scaling"] or {"rope_type": "default"}) | {"rope_theta": flat["rope_theta"]},
    }
    old = dict(flat)
    if flat["rope_scaling"]:
        old["rope_scaling"] = dict(flat["rope_scaling"])
        old["rope_scaling"]["type"] = old["rope_scaling"].pop("rope_type")
    for spelling in (flat, nested, old, LlamaConfig(**nested).to_dict()):
        assert RopeScaling.from_hf(spelling) == rope


@pytest.mark.parametrize("rope", [rope for rope in ROPES if rope.kind != "none"], ids=lambda rope: rope.kind)
def test_the_exports_factor_is_the_ratio_of_its_lengths(rope):
    exported = rope.to_hf()
    assert exported["max_position_embeddings"] == exported["rope_scaling"]["factor"] * rope.original_length


def test_the_papers_form_is_exported_as_llama3():
    rope = RopeScaling(base=5e5, kind="yarn", form="paper", factor=128.0, original_length=8192)
    assert rope.to_hf() == {
        "rope_theta": 5e5,
        "max_position_embeddings": 1048576,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 128.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }


def test_llama31_reads_as_published():
    rope = RopeScaling.from_hf(LLAMA31)
    assert rope == RopeScaling(
        base=5e5, kind="llama3", factor=8.0, original_length=8192, alpha=1.0, beta=4.0, declared_length=131072
    )
    assert rope.length == 131072  # twice what factor x original says: its own config.json differs from the rule
    assert rope.to_hf() == LLAMA31
    assert RopeScaling.from_hf({}) == RopeScaling(base=1e4, original_length=2048)


def test_a_config_json_that_declares_too_little_is_exported_with_the_ratio():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    rope = RopeScaling.from_hf({"max_position_embeddings": 32768, "rope_theta": 1e6, "rope_scaling": scaling})
    assert rope.to_hf()["max_position_embeddings"] == 131072


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factor": 0.5}, "rope factor 0.5 is below 1; give new length / original length."),
        ({"factor": math.nan}, "rope factor nan is below 1; give new length / original length."),
        ({"original_length": 0}, "rope original_length 0 is not positive; give tokens."),
        ({"alpha": 4.0}, "rope alpha 4.0 is not below beta 4.0; swap or mend them."),
    ],
)
def test_a_rope_that_cannot_be_is_named(changes, said):
    with pytest.raises(UserError) as caught:
        RopeScaling(**{"base": 1e4, "kind": "yarn", "factor": 2.0, "original_length": 2048} | changes)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        (
            RopeScaling(base=1e4, kind="yarn", factor=2.0, original_length=2048, attention_factor=1.07),
            "rope form 'paper' with attention_factor 1.07 has no Hugging Face form; train with attention_factor 1, "
            "or with form 'coded'.",
        ),
        (
            RopeScaling(base=1e4, kind="ntk", factor=2.0, original_length=2048),
            "rope kind 'ntk' depends on the head size, so config.json states it as another rope_theta.",
        ),
    ],
)
def test_a_rope_without_a_hugging_face_form_is_not_exported(rope, said):
    with pytest.raises(UserError) as caught:
        rope.to_hf()
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "config.json: rope_type 'longrope' is not supported; known: "),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            "config.json: the llama3 rope entry has no high",
        ),
        ({"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}, "config.json: rope mscale and "),
        ({"full_attention": {"rope_theta": 1e4}}, "config.json: rope_parameters differ by layer type, "),
    ],
)
def test_a_config_json_that_we_do_not_compute_is_named(entry, said):
    with pytest.raises(UserError) as caught:
        RopeScaling.from_hf({"rope_parameters": entry})
    assert str(caught.value).startswith(said)


def test_a_run_scales_from_the_models_original_length():
    own = RopeScaling.from_hf(LLAMA31)
    assert scaled(own, RopeConfig(), 131072) == own
    assert scaled(own, RopeConfig(kind="yarn"), 1048576) == RopeScaling(
        base=5e5, kind="yarn", form="paper", factor=128.0, original_length=8192, alpha=1.0, beta=4.0
    )
    longer = scaled(own, RopeConfig(kind="yarn", form="coded", target_length=4194304, temperature=True), 8192)
    assert (longer.factor, longer.length) == (512.0, 4194304)
    assert longer.attention_factor == pytest.approx(1.62383, abs=1e-5)
    assert scaled(own, RopeConfig(kind="linear", original_length=131072), 262144).factor == 2.0


@pytest.mark.parametrize(
    ("section", "length", "said"),
    [
        (RopeConfig(), 131073, "data.sequence_length 131073 is longer than the model's context of 131072 tokens; "),
        (RopeConfig(kind="yarn", target_length=16384), 16385, "data.sequence_length 16385 is longer than the model's "),
        (RopeConfig(kind="yarn"), 4096, "rope.target_length 4096 is below the original length 8192; "),
    ],
)
def test_a_run_whose_samples_do_not_fit_is_named(section, length, said):
    with pytest.raises(UserError) as caught:
        scaled(RopeScaling.from_hf(LLAMA31), section, length)
    assert str(caught.value).startswith(said)
