"""Name tables: which Hugging Face tensors make up which megatron-core tensor, one tuple of rules a family.

Conversion works from a table, and so does the model: what biases and norms it has is read off the keys. A new
family is a table here and a fixture in tests/convert/tiny_models.py, nothing else (docs/conversion.md). Keys are
megatron-core's own; layer norms are stored beside the projection they feed, as Transformer Engine's fused modules
name them and as this project's layers save them too.
"""

from __future__ import annotations

import re
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import check_window, completed
from megatron_ultralong.families.rules import Copy, FusedQKV, GatedMLP, Rule

_HF, _MCORE = "model.layers.{layer}.", "decoder.layers."
_ATTENTION, _MLP = _MCORE + "self_attention.", _MCORE + "mlp."
_PROJECTIONS = tuple(_HF + f"self_attn.{part}_proj." for part in "qkv")

EMBEDDING = Copy("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), ("V D",))
OUTPUT = Copy("output_layer.weight", ("lm_head.weight",), ("V D",))
QKV_BIAS = FusedQKV(_ATTENTION + "linear_qkv.bias", tuple(name + "bias" for name in _PROJECTIONS), ("NH", "KH", "KH"))
Q_NORM = Copy(_ATTENTION + "q_layernorm.weight", (_HF + "self_attn.q_norm.weight",), ("H",))
K_NORM = Copy(_ATTENTION + "k_layernorm.weight", (_HF + "self_attn.k_norm.weight",), ("H",))

LLAMA: tuple[Rule, ...] = (
    EMBEDDING,
    Copy(_ATTENTION + "linear_qkv.layer_norm_weight", (_HF + "input_layernorm.weight",), ("D",)),
    FusedQKV(
        _ATTENTION + "linear_qkv.weight", tuple(name + "weight" for name in _PROJECTIONS), ("NH D", "KH D", "KH D")
    ),
    Copy(_ATTENTION + "linear_proj.weight", (_HF + "self_attn.o_proj.weight",), ("D NH",)),
    Copy(_MLP + "linear_fc1.layer_norm_weight", (_HF + "post_attention_layernorm.weight",), ("D",)),
    GatedMLP(_MLP + "linear_fc1.weight", (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight"), ("F D", "F D")),
    Copy(_MLP + "linear_fc2.weight", (_HF + "mlp.down_proj.weight",), ("D F",)),
    Copy("decoder.final_layernorm.weight", ("model.norm.weight",), ("D",)),
    OUTPUT,
)
_PHI3_FUSED: dict[str, Rule] = {
    _ATTENTION + "linear_qkv.weight": FusedQKV(
        _ATTENTION + "linear_qkv.weight", (_HF + "self_attn.qkv_proj.weight",), ("QKV D",)
    ),
    _MLP + "linear_fc1.weight": Copy(_MLP + "linear_fc1.weight", (_HF + "mlp.gate_up_proj.weight",), ("2F D",)),
}
PHI3 = tuple(_PHI3_FUSED.get(rule.megatron, rule) for rule in LLAMA)

FAMILIES: dict[str, tuple[Rule, ...]] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": (*LLAMA, QKV_BIAS),
    "Qwen3ForCausalLM": (*LLAMA, Q_NORM, K_NORM),
    "Phi3ForCausalLM": PHI3,
}
"""By config.json's `architectures`. With tie_word_embeddings, OUTPUT falls away."""
_SCALES = re.compile("multiplier|softcap|_scal(e|ar|ing)$|^scale_|^clip_|^dim_model_base$|^quantization_config$")
"""Entries that change what a model computes, or how its weights are to be read, and that no family here knows."""


def rules_of(config: dict[str, Any]) -> tuple[Rule, ...]:
    """The table of a config.json's architecture; with tied embeddings, without the output layer.

    Raises:
        UserError: an architecture that no table describes, or an entry that asks for what is not computed here: an
            activation, a sliding window, a bias, a scale.
    """
    config = completed(config)
    named = config.get("architectures") or ["(none)"]
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise UserError(
            f"config.json: architectures is {named!r}; give a list of one name, such as {next(iter(FAMILIES))}."
        )
    architecture = named[0]
    if architecture not in FAMILIES:
        raise UserError(
            f"config.json: architecture {architecture!r} is not known; known: {', '.join(FAMILIES)} "
            "(a new one is a table in families/tables.py)."
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"config.json: hidden_act {config['hidden_act']!r} is not supported; known: 'silu'.")
    check_window(config, config.get("max_position_embeddings") or 0)
    epsilon = config["rms_norm_eps"]
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise UserError(f"config.json: rms_norm_eps is {epsilon!r}; give a number above 0, such as 1e-6.")
    _refuse_what_is_not_computed(config, FAMILIES[architecture])
    return tuple(rule for rule in FAMILIES[architecture] if not (rule == OUTPUT and config.get("tie_word_embeddings")))


def _refuse_what_is_not_computed(config: dict[str, Any], rules: tuple[Rule, ...]) -> None:
    biased = any(rule.megatron.endswith("linear_qkv.bias") for rule in rules)
    for name, value in config.items():
        bias = name == "mlp_bias" or (name in ("attention_bias", "qkv_bias") and not biased)
        scale = _SCALES.search(name) and name != "rope_scaling"
        if (bias and value) or (scale and value not in (None, False, 1)):
            mend = "undo the quantization, and remove it" if name == "quantization_config" else "remove it"
            raise UserError(
                f"config.json: {name} is {str(value)[:60]}, which is not computed here; {mend} if the weights do "
                "without, or convert another model."
            )
