"""Tiny random models of each family, built and saved by transformers itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

torch.set_num_threads(1)

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "phi3": ("Phi3", {"pad_token_id": 0, "eos_token_id": 0, "original_max_position_embeddings": 64}),
}
"""Test name -> transformers' class prefix and what its configuration has beside SIZES."""

Build = Callable[..., Path]


def build_model(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a random model of `family` into `folder`, every parameter random (norms and biases too)."""
    prefix, extra = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **extra, **changes})
    torch.manual_seed(1)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size="30KB")
    return folder
