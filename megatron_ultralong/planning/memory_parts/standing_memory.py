"""What is there between steps: weights, gradients, optimizer, and buffers that are made once."""

from __future__ import annotations

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.planning.flops import ModelShape
from megatron_ultralong.planning.memory_parts.share import Family, Share


def parameters(shape: ModelShape, kind: Family, tensor: int, layers: int, first: bool, head: bool, tied: bool) -> int:
    """Elements of one rank's weights.

    Args:
        shape: the model.
        kind: of its layers.
        tensor: tensor-parallel ranks.
        layers: of this stage.
        first: the stage has the embedding.
        head: it has the head.
        tied: the head is the embedding.
    """
    layer = shape.layer_weights // tensor + 2 * shape.hidden
    if kind.qkv_bias:
        layer += shape.head_dim * (shape.heads + 2 * shape.kv_heads) // tensor
    if kind.qk_norm:
        layer += 2 * shape.head_dim
    table = -(-shape.vocabulary // tensor) * shape.hidden
    ends = table if first else 0
    if head:
        ends += shape.hidden + (0 if tied and first else table)
    return layers * layer + ends


def optimizer_bytes(config: RunConfig, owned: int) -> int:
    """Adam's two moments in fp32 and, for bf16, the main weights; of `owned` elements, what is not offloaded."""
    each = 12 if config.train.precision == "bf16" else 8
    return int(each * owned * (1 - config.optimizer.offload_fraction))


def gather_buffer(s: Share) -> int:
    """megatron-core's, into which sequence parallelism gathers a layer's input; it is never freed."""
    return s.whole if s.split else 0


def rotary_table(config: RunConfig, shape: ModelShape, s: Share) -> int:
    """cos and sin of this rank's positions, for all layers."""
    return s.positions * shape.head_dim * s.element
