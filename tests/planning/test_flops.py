"""The step's FLOPs against torch's own counter over transformers' model, and literal figures."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ultralong.planning.flops import ModelShape, causal_pairs, peak_flops, step_flops

LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 16), (4, 2, 16), (8, 1, 8)])
def test_equals_torchs_counter(heads: int, kv_heads: int, head_dim: int) -> None:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).train()
    tokens = torch.randint(96, (2, 32))
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    shape = ModelShape.from_hf(config.to_dict())
    pairs = 2 * 32 * 32  # eager attention computes every pair
    assert step_flops(shape, tokens=64, labels=64, pairs=pairs) == counter.get_total_flops()


def test_llama_8b_at_its_lengths() -> None:
    shape = ModelShape.from_hf(LLAMA_8B)
    assert shape.layer_weights == 218_103_808
    assert shape.layers * shape.layer_weights + shape.hidden * shape.vocabulary == 7_504_658_432
    million = 2**20
    flops = step_flops(shape, million, million, causal_pairs([million]))
    assert flops == 6 * 7_504_658_432 * million + 12 * 32 * 4096 * (million * (million + 1) // 2)
    assert flops == pytest.approx(9.12e17, rel=1e-3)
    assert step_flops(shape, million, 0, 0) == 6 * 32 * 218_103_808 * million


def test_documents_cost_the_sum_of_their_squares() -> None:
    assert causal_pairs([1, 2, 5]) == 1 + 3 + 15
    assert causal_pairs([]) == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4", 312e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("Some CPU", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
