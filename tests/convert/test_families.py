"""Name tables: literal layouts, and everything a table refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.rules import Dimensions, FusedQKV, GatedMLP
from megatron_ultralong.families.tables import FAMILIES, LLAMA, OUTPUT

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_qkv_interleaves_by_group() -> None:
    # 4 query heads, 2 key-value heads, head size 1, one column: rows are named by what they are.
    dimensions = Dimensions(layers=1, V=1, D=1, F=1, N=4, K=2, H=1)
    q, k, v = torch.tensor([[1], [2], [3], [4]]), torch.tensor([[10], [20]]), torch.tensor([[100], [200]])
    rule = FusedQKV("qkv", ("q", "k", "v"), ("NH D", "KH D", "KH D"))
    fused = rule.merge([q, k, v], dimensions)
    assert fused.flatten().tolist() == [1, 2, 10, 100, 3, 4, 20, 200]
    assert all(torch.equal(a, b) for a, b in zip(rule.split(fused, dimensions), (q, k, v), strict=True))


def test_qkv_keeps_the_rows_of_a_head_together() -> None:
    dimensions = Dimensions(layers=1, V=1, D=1, F=1, N=2, K=1, H=2)
    rule = FusedQKV("bias", ("q", "k", "v"), ("NH", "KH", "KH"))
    fused = rule.merge([torch.arange(4), torch.tensor([10, 11]), torch.tensor([20, 21])], dimensions)
    assert fused.tolist() == [0, 1, 2, 3, 10, 11, 20, 21]


def test_gated_mlp_puts_the_gate_first() -> None:
    dimensions = Dimensions(layers=1, V=1, D=2, F=1, N=1, K=1, H=1)
    rule = GatedMLP("fc1", ("gate", "up"), ("F D", "F D"))
    fused = rule.merge([torch.tensor([[1, 2]]), torch.tensor([[3, 4]])], dimensions)
    assert fused.tolist() == [[1, 2], [3, 4]]
    assert [part.tolist() for part in rule.split(fused, dimensions)] == [[[1, 2]], [[3, 4]]]


def test_keys_and_shapes_are_megatron_cores() -> None:
    assert Table.from_hf(CONFIG).megatron_shapes == {
        "embedding.word_embeddings.weight": (11, 8),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (2, 8),
        "decoder.layers.self_attention.linear_qkv.weight": (2, 16, 8),
        "decoder.layers.self_attention.linear_proj.weight": (2, 8, 8),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": (2, 8),
        "decoder.layers.mlp.linear_fc1.weight": (2, 12, 8),
        "decoder.layers.mlp.linear_fc2.weight": (2, 8, 6),
        "decoder.final_layernorm.weight": (8,),
        "output_layer.weight": (11, 8),
    }


def test_pieces_follow_the_forward_pass() -> None:
    order = [(rule.megatron.split(".")[0], layer) for rule, layer in Table.from_hf(CONFIG).pieces()]
    assert order == [("embedding", 0)] + [("decoder", 0)] * 6 + [("decoder", 1)] * 6 + [
        ("decoder", 0),
        ("output_layer", 0),
    ]


def test_tied_embeddings_have_no_output_layer() -> None:
    table = Table.from_hf(CONFIG | {"tie_word_embeddings": True})
    assert OUTPUT not in table.rules
    table.check_hf({**table.hf_shapes, "lm_head.weight": (11, 8)}, "x")  # some files store it twice


def test_a_new_family_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "NewForCausalLM", LLAMA)
    assert Table.from_hf(CONFIG | {"architectures": ["NewForCausalLM"]}).rules == LLAMA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architecture 'GPT2LMHeadModel' is not known; known: LlamaForCausalLM",
        ),
        ({"architectures": None}, "architecture '(none)' is not known"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"hidden_size": None}, "hidden_size is null, for which its loader has no meaning; state it or remove it"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; give"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'; give a number above 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; give"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; give at most 10,000"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config is {'quant_method': 'fp8'}, which is not",
        ),
        ({"attention_bias": True}, "attention_bias is True, which is not computed here; remove it if"),
        ({"mlp_bias": True}, "mlp_bias is True, which"),
        ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22, which"),
        ({"logits_scaling": 8}, "logits_scaling is 8, which"),
        ({"scale_emb": 12}, "scale_emb is 12, which"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, which"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ],
)
def test_refuses_a_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Table.from_hf(json.loads(json.dumps(CONFIG)) | change)
    assert message in str(error.value)


def test_entries_that_change_nothing_are_let_pass() -> None:
    neutral = {"attention_bias": False, "embedding_multiplier": 1.0, "logits_scaling": None, "rope_scaling": None}
    assert Table.from_hf(CONFIG | neutral).rules == LLAMA
    Table.from_hf(CONFIG | {"architectures": ["Qwen2ForCausalLM"], "attention_bias": True})  # its table has them


def test_names_missing_left_over_and_misshapen_tensors() -> None:
    table = Table.from_hf(CONFIG)
    shapes = dict(table.hf_shapes)
    norm = shapes.pop("model.norm.weight")
    with pytest.raises(UserError, match=r"DIR: .* missing: model\.norm\.weight"):
        table.check_hf(shapes, "DIR")
    with pytest.raises(UserError, match=r"left over: model\.layers\.0\.self_attn\.q_proj\.bias;"):
        table.check_hf({**table.hf_shapes, "model.layers.0.self_attn.q_proj.bias": (8,)}, "DIR")
    with pytest.raises(UserError, match=r"model\.norm\.weight has shape \[9\], but config\.json makes it \[8\]"):
        table.check_hf({**table.hf_shapes, "model.norm.weight": (9,)}, "DIR")
    table.check_hf(
        {**table.hf_shapes, "model.norm.weight": norm, "model.layers.0.self_attn.rotary_emb.inv_freq": (2,)}, ""
    )


def test_megatron_side_allows_padding_and_optimizer_state() -> None:
    table = Table.from_hf(CONFIG)
    padded = {"embedding.word_embeddings.weight": (128, 8), "output_layer.weight": (128, 8)}
    table.check_megatron({**table.megatron_shapes, **padded, "optimizer.state.exp_avg.decoder.x": (3,)}, "DIR")
    with pytest.raises(UserError, match=r"has shape \[10, 8\], but config\.json makes it \[11, 8\]"):
        table.check_megatron({**table.megatron_shapes, "output_layer.weight": (10, 8)}, "DIR")
    with pytest.raises(UserError, match=r"has decoder\.layers\.mlp\.router\.weight, which no rule maps"):
        table.check_megatron({**table.megatron_shapes, "decoder.layers.mlp.router.weight": (1,)}, "DIR")
