"""RopeScaling against transformers' own functions, the formulas written out, and numbers worked by hand."""

import itertools
import math

import numpy as np
import pytest
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups
from megatron_ultralong.errors import UserError
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.scaling import RopeScaling, temperature

BASES = (1e4, 5e5, 1e6, 1e9)
HEAD_DIMS = (64, 80, 128, 256)
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
    hf = config_json.write(rope)
    parameters = (hf["rope_scaling"] or {"rope_type": "default"}) | {"rope_theta": hf["rope_theta"]}
    config = LlamaConfig(
        head_dim=head_dim, rope_parameters=parameters, max_position_embeddings=hf["max_position_embeddings"]
    )
    module = LlamaRotaryEmbedding(config)
    return module.inv_freq.double().numpy(), module.attention_scaling


def plain(base: float, dim: int) -> np.ndarray:
    return base ** (-np.arange(0, dim, 2) / dim)


def ramp_rounding(rope: RopeScaling, dim: int) -> np.ndarray:
    """What fp32 makes of a ramp: six roundings of rotations or index, of which theta' takes over the kept share."""
    if rope.kind not in ("llama3", "yarn"):
        return np.zeros(dim // 2)
    if rope.kind == "yarn" and rope.form == "coded":
        low, high = rope.ramp_ends(dim)
        along, width = np.arange(dim // 2), high - low
    else:
        low, high = rope.alpha, rope.beta
        along, width = rope.original_length * plain(rope.base, dim) / (2 * math.pi), high - low
    blended = (along > low) & (along < high)
    return blended * 6 * 2**-24 * along / width * plain(rope.base, dim)


@pytest.mark.parametrize(
    ("kind", "form", "beta"),
    [
        ("none", "paper", 4.0),
        ("linear", "paper", 4.0),
        ("yarn", "coded", 4.0),
        ("yarn", "coded", 32.0),
        ("llama3", "paper", 4.0),
        ("yarn", "paper", 4.0),
        ("yarn", "paper", 32.0),
    ],
)
def test_frequencies_are_those_of_transformers(kind, form, beta):
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
        assert np.all(np.abs(ours - theirs) <= 1e-6 * ours + ramp_rounding(rope, dim)), rope
        assert attention == 1.0


class MegatronYarn(YarnRotaryEmbedding):
    """megatron-core's, without the cache of cos and sin that it fills when it is made."""

    def _set_cos_sin_cache(self, *arguments, **options):
        pass


@pytest.mark.parametrize("beta", [4.0, 32.0])
@pytest.mark.parametrize("truncate", [True, False])
def test_frequencies_are_those_of_megatron_cores_yarn(beta, truncate):
    with groups.single_process(ParallelConfig(device="cpu")):
        for base, dim, factor, length in itertools.product((1e4, 5e5, 1e9), HEAD_DIMS, FACTORS, LENGTHS):
            theirs = MegatronYarn(
                dim,
                rotary_base=base,
                scaling_factor=factor,
                original_max_position_embeddings=length,
                beta_fast=beta,
                correction_range_round_to_int=truncate,
                use_cpu_initialization=True,
            )
            angles, attention = theirs.get_emb(1, offset=1)  # position 1, whose angles are the frequencies
            scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
            scaling |= {"beta_fast": beta, "truncate": truncate, "rope_theta": base}
            rope = config_json.read({"rope_parameters": scaling})
            ours, frequencies = rope.inverse_frequencies(dim), angles[0, 0, 0, : dim // 2].double().numpy()
            assert np.all(np.abs(ours - frequencies) <= 1e-6 * ours + ramp_rounding(rope, dim)), rope
            assert rope.attention_factor == pytest.approx(attention, rel=1e-6)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("attention", [None, 1.0, 1.25])
def test_yarn_without_an_attention_factor_gets_transformers_own(factor, truncate, attention):
    entry = {"rope_type": "yarn", "rope_theta": 5e5, "factor": factor, "original_max_position_embeddings": 8192}
    entry |= {"truncate": truncate} | ({} if attention is None else {"attention_factor": attention})
    config = {"rope_parameters": entry, "max_position_embeddings": round(8192 * factor)}
    rope = config_json.read(config)
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
    ("form", "index", "kept"),
    [
        ("paper", 0, 1.0),  # 1303.8 rotations in 8,192 tokens
        ("paper", 28, 1.0),  # 4.1871 rotations, above beta
        ("paper", 29, 0.80362104),  # 3.41086313 rotations: (r - 1) / 3
        ("paper", 34, 0.07452656),  # 1.22357969 rotations
        ("paper", 35, 0.0),  # 0.9967491 rotations, below alpha
        ("paper", 63, 0.0),
        # 4 and 1 rotations fit at 28.22 and 34.98, rounded outwards to 28 and 35: a ramp of sevenths
        ("coded", 28, 1.0),
        ("coded", 29, 6 / 7),
        ("coded", 34, 1 / 7),
        ("coded", 35, 0.0),
        ("coded", 63, 0.0),
    ],
)
@pytest.mark.parametrize("factor", [128, 256, 512])
def test_llama31_to_one_two_and_four_million_tokens_by_hand(form, index, kept, factor):
    rope = RopeScaling(base=5e5, kind="yarn", form=form, factor=factor, original_length=8192)
    theta = math.exp(-2 * index / 128 * 13.122363377404328)  # ln 500,000
    expected = theta * (kept + (1 - kept) / factor)
    assert rope.inverse_frequencies(128)[index] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("form", "factor", "frequency"),
    [  # radians a token at index 34, whose own is 9.38474e-4
        ("paper", 128, 7.672664e-05),
        ("paper", 256, 7.333394e-05),
        ("paper", 512, 7.163759e-05),
        ("coded", 128, 1.4035212e-04),
        ("coded", 256, 1.3720991e-04),
        ("coded", 512, 1.3563880e-04),
    ],
)
def test_the_two_forms_differ_most_at_index_34(form, factor, frequency):
    rope = RopeScaling(base=5e5, kind="yarn", form=form, factor=factor, original_length=8192)
    assert rope.inverse_frequencies(128)[34] == pytest.approx(frequency, rel=1e-6)


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": 1.0}, "rope base 1.0 is not above 1; give the model's rope_theta."),
        ({"factor": 0.5}, "rope factor 0.5 is below 1; give new length / original length."),
        ({"factor": math.nan}, "rope factor nan is below 1; give new length / original length."),
        ({"original_length": 0}, "rope original_length 0 is not positive; give tokens."),
        ({"alpha": 4.0}, "rope alpha 4.0 is not between 0 and beta 4.0; swap or mend them."),
        ({"attention_factor": 0.0}, "rope attention_factor 0.0 is not above 0; 1 leaves the logits as they are."),
        ({"rotary_fraction": 1.5}, "rope partial_rotary_factor 1.5 is not above 0 and at most 1."),
        ({"kind": "longrope"}, "rope short_factor has 0 numbers and long_factor 0; give as many in both."),
        (
            {"kind": "longrope", "short_factors": (0.0,), "long_factors": (1.0,)},
            "rope short_factor or long_factor has a number that is not above 0; divisors are positive.",
        ),
    ],
)
def test_a_rope_that_cannot_be_is_named(changes, said):
    with pytest.raises(UserError) as caught:
        RopeScaling(**{"base": 1e4, "kind": "yarn", "factor": 2.0, "original_length": 2048} | changes)
    assert str(caught.value) == said


def test_partial_rotary():
    rope = RopeScaling(base=1e4, original_length=64, rotary_fraction=0.75)
    assert (rope.rotary_dim(128), rope.rotary_dim(80)) == (96, 60)
    with pytest.raises(UserError, match=r"partial_rotary_factor 0.75 of a head of 4 rotates 3 channels"):
        rope.rotary_dim(4)


def test_longropes_lists_must_fit_the_head():
    rope = RopeScaling(base=1e4, kind="longrope", original_length=8, short_factors=(1.0, 2.0), long_factors=(2.0, 4.0))
    np.testing.assert_allclose(rope.inverse_frequencies(4, 8), [1.0, 0.005])
    np.testing.assert_allclose(rope.inverse_frequencies(4, 9), [0.5, 0.0025])
    with pytest.raises(UserError, match="short_factor and long_factor have 2 numbers, but 6 rotated channels need 3"):
        rope.inverse_frequencies(6)
