"""Floating-point operations of a training step, exactly as the model needs them.

Only matrix products count, at 2 operations a multiply-add, as in PaLM (arXiv 2204.02311, appendix B): the
linear layers for each token, the head for each token with a label, and attention for each pair of a query and a
key that it may see, which at millions of tokens is nearly everything. Backward is twice forward; what is
recomputed is not counted, so the figures are those of the model, not of the hardware.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

PEAK_FLOPS = {
    # Dense bf16 of the vendor's data sheets, by what the device's name contains; the first match counts.
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder that its cost depends on; names as in the Hugging Face config.json."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def from_hf(cls, hf_config: dict[str, Any]) -> ModelShape:
        """From a config.json."""
        heads = int(hf_config["num_attention_heads"])
        return cls(
            layers=int(hf_config["num_hidden_layers"]),
            hidden=int(hf_config["hidden_size"]),
            ffn=int(hf_config["intermediate_size"]),
            heads=heads,
            kv_heads=int(hf_config.get("num_key_value_heads") or heads),
            head_dim=int(hf_config.get("head_dim") or hf_config["hidden_size"] // heads),
            vocabulary=int(hf_config["vocab_size"]),
        )

    @property
    def layer_weights(self) -> int:
        """Elements of one layer's matrices: query, key, value, output, gate, up, down."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.ffn

    def parameters(self, tied: bool) -> int:
        """Elements of all matrices and norms; biases, and norms of heads, are a thousandth of them and left out."""
        tables = (1 if tied else 2) * self.vocabulary * self.hidden
        return self.layers * (self.layer_weights + 2 * self.hidden) + tables + self.hidden


def causal_pairs(lengths: Iterable[int]) -> int:
    """Pairs of a query and a key that a causal mask lets through, in documents of these lengths."""
    return sum(length * (length + 1) // 2 for length in lengths)


def flops_by_part(shape: ModelShape, tokens: int, labels: int, pairs: int) -> dict[str, int]:
    """Of `step_flops`, by part: layers' products, attention, head."""
    layers = 2 * tokens * shape.layers * shape.layer_weights
    attention = 4 * pairs * shape.layers * shape.heads * shape.head_dim
    head = 2 * labels * shape.hidden * shape.vocabulary
    return {"linear": 3 * layers, "attention": 3 * attention, "head": 3 * head}


def step_flops(shape: ModelShape, tokens: int, labels: int, pairs: int) -> int:
    """Operations of forward and backward.

    Args:
        shape: the model.
        tokens: positions that go through the layers, in all samples of the step.
        labels: positions whose loss counts; others skip the head (model/loss.py).
        pairs: query-key pairs that attention computes, in all samples (see `causal_pairs`).
    """
    return sum(flops_by_part(shape, tokens, labels, pairs).values())


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a GPU by its name, or None if it is not in the table."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)
