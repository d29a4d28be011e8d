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


PIECE = 2**21
"""Elements that Adam on the host takes at once: `engine.host_adam`'s."""


def optimizer_bytes(config: RunConfig, owned: int) -> int:
    """Adam's two moments in fp32 and, for bf16, the main weights; of `owned` elements, what is not on the host."""
    return int(_state(config) * owned * (1 - config.optimizer.offload_fraction))


def widened_gradients(config: RunConfig, owned: int) -> int:
    """bf16 gradients in fp32, all at once, as Adam takes them on the device."""
    return 0 if config.train.grad_reduce_in_fp32 else int(4 * owned * (1 - config.optimizer.offload_fraction))


def host_bytes(config: RunConfig, shape: ModelShape, owned: int) -> int:
    """The share of the state that is in host memory, and what two pieces of gradients and weights wait in there."""
    share = config.optimizer.offload_fraction
    element = 2 if config.train.precision == "bf16" else 4
    gradient = 4 if config.train.grad_reduce_in_fp32 else 2
    largest = max(shape.vocabulary, 2 * shape.ffn) * shape.hidden // config.parallel.tensor
    piece = min(PIECE, owned, largest) if share else 0
    return int(_state(config) * owned * share) + piece * (2 * (gradient + element) + (4 if gradient == 2 else 0))


def _state(config: RunConfig) -> int:
    return 12 if config.train.precision == "bf16" else 8


def gather_buffer(s: Share) -> int:
    """megatron-core's, into which sequence parallelism gathers a layer's input; it is never freed.

    The lean layer gathers a tile at a time.
    """
    return s.whole if s.split and not s.head_groups.count else 0


def rotary_table(config: RunConfig, shape: ModelShape, s: Share) -> int:
    """cos and sin of this rank's positions, for all layers."""
    return s.positions * shape.head_dim * s.element
