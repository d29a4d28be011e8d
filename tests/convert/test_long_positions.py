"""Far past the original length: the logits of a converted random Llama are transformers' own, near 1M and 4M.

Twelve tokens at the beginning of the context and twelve at its end, so that queries meet keys at both
distances. Angles in fp32 are formed rounding by rounding as transformers forms them: what is left is the rounding of
the same sums in another order. `tools/inspect_rope.py` prints how far fp32 angles are from exact ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.checkpoint.loading import load_weights
from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.engine import groups
from megatron_ultralong.model.build import build_model
from megatron_ultralong.model.rotary import Angles
from tests.convert.tiny_models import Build

HEAD = {"head_dim": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
LENGTHS = {1048576: 128.0, 4194304: 512.0}


def model(build: Build, length: int) -> Path:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": LENGTHS[length],
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return build("llama", max_position_embeddings=length, rope_parameters=rope, **HEAD)


def megatron_logits(load: Path, tokens: torch.Tensor, positions: torch.Tensor, angles: Angles) -> torch.Tensor:
    description = Description.read(load)
    with groups.single_process(ParallelConfig(device="cpu")), torch.inference_mode():
        ours: Any = build_model(description.hf_config, description.rope, ParallelConfig(), "fp32", angles).eval()
        load_weights(ours, load)
        layout = SequenceLayout(position_ids=positions)
        return ours(input_ids=tokens, position_ids=positions, attention_mask=None, packed_seq_params=layout)


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_near_the_end_of_the_context(build: Build, tmp_path: Path, length: int) -> None:
    source = model(build, length)
    convert_hf_to_megatron(hf=source, output=tmp_path / "megatron")
    positions = torch.cat((torch.arange(12), torch.arange(length - 12, length)))[None]
    tokens = torch.randint(101, (1, 24), generator=torch.Generator().manual_seed(0))
    hf = AutoModelForCausalLM.from_pretrained(
        source, trust_remote_code=False, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    with torch.inference_mode():
        theirs = hf(input_ids=tokens, position_ids=positions, attention_mask=torch.ones(1, 1, 24, 24).tril().bool())
    logits = theirs.logits
    ours = megatron_logits(tmp_path / "megatron", tokens, positions, "fp32")
    exact = megatron_logits(tmp_path / "megatron", tokens, positions, "fp64")
    rounding = (ours - logits).abs().max() / logits.abs().max()
    angles = (exact - logits).abs().max() / logits.abs().max()
    print(f"{length} tokens: ours - transformers {rounding:.2g}, fp64 angles - fp32 angles {angles:.2g}")
    assert rounding < 2e-6  # the sums of fp32 in another order: see test_logits
    assert angles > 100 * rounding  # fp32 angles are another thing than exact ones, and a test that sees it
