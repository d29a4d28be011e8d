"""Name tables: which Hugging Face tensors make up which megatron-core tensor, one tuple of rules a family.

Everything else in this room works from a table, so that a new family is a table and a test fixture, nothing
else. Keys are megatron-core's own; layer norms are stored beside the projection they feed, as Transformer
Engine's fused modules name them and as this project's layers save them too.
"""

from __future__ import annotations

from megatron_ultralong.convert.rules import Copy, FusedQKV, GatedMLP, Rule

_HF, _MCORE = "model.layers.{layer}.", "decoder.layers."
_ATTENTION, _MLP = _MCORE + "self_attention.", _MCORE + "mlp."
_PROJECTIONS = tuple(_HF + f"self_attn.{part}_proj." for part in "qkv")

EMBEDDING = Copy("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), ("V D",))
OUTPUT = Copy("output_layer.weight", ("lm_head.weight",), ("V D",))
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
QKV_BIAS = FusedQKV(_ATTENTION + "linear_qkv.bias", tuple(name + "bias" for name in _PROJECTIONS), ("NH", "KH", "KH"))
QK_NORMS = (
    Copy(_ATTENTION + "q_layernorm.weight", (_HF + "self_attn.q_norm.weight",), ("H",)),
    Copy(_ATTENTION + "k_layernorm.weight", (_HF + "self_attn.k_norm.weight",), ("H",)),
)

FAMILIES: dict[str, tuple[Rule, ...]] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": (*LLAMA, QKV_BIAS),
    "Qwen3ForCausalLM": (*LLAMA, *QK_NORMS),
}
"""By config.json's `architectures`. With tie_word_embeddings, OUTPUT falls away."""
