"""One rank's share of the model and of a microbatch, and the bytes of each kind of tensor in it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.families.tables import FAMILIES
from megatron_ultralong.planning.flops import ModelShape

_MULTIPROCESSORS = 132
"""Of an H100, among which deterministic attention splits its sums of dq."""


@dataclasses.dataclass(frozen=True)
class Family:
    """What an architecture's layers have besides Llama's.

    Attributes:
        qkv_bias: biases of queries, keys and values.
        qk_norm: norms of each head's queries and keys.
    """

    qkv_bias: bool
    qk_norm: bool


@functools.cache
def family(architecture: str) -> Family:
    """By config.json's name; an unknown one counts as Llama's."""
    names = [rule.megatron for rule in FAMILIES.get(architecture, ())]
    return Family(
        any(name.endswith("linear_qkv.bias") for name in names),
        any(name.endswith("q_layernorm.weight") for name in names),
    )


@dataclasses.dataclass(frozen=True)
class Share:
    """Sizes of one rank's tensors of a layer, in bytes unless said otherwise. A microbatch has B samples.

    Attributes:
        gpu: norms and SwiGLU are one operator each, a rotation too, and the host's memory is another.
        element: of a number in the model's precision.
        split: the sequence is split over tensor parallelism where norms work.
        batch: B.
        positions: of a microbatch on this rank, as attention and the MLP see them.
        rows: of them, those that norms see.
        width: D.
        stream: hidden states as norms see them, [rows, D].
        whole: hidden states of all positions, [positions, D].
        q: queries.
        kv: keys, or values.
        projected: what the fused projection makes: queries, keys, values.
        gathered: the same of all heads, where key-value heads are fewer than tensor-parallel ranks; else 0.
        regrouped: queries are copied to lie together.
        gate: gate or up of the MLP.
        lse: attention's log-sum-exp, fp32.
        head_rows: a number a head and row in fp32 that fused norms of heads keep, queries' and keys'.
        weights_qkv, weights_proj, weights_up, weights_down: a layer's matrices.
        tile: share of the positions that go through the MLP at once, and `tiles` how many there are.
        fused_swiglu: SwiGLU is one operator.
        qkv_bias, qk_norm: as of the family.
        ulysses: ranks that exchange heads.
        sent_kv: keys, or values, once heads are exchanged.
        ring: ranks of the ring.
        dq_sums: of a kernel that adds in order; else 1.
        wide: what fp32 takes of the model's precision, where it is a copy; else 0.
        reordered: attention's output is copied into the order of rows, which kernels keep and an exchange does not.
    """

    gpu: bool
    element: int
    split: bool
    batch: int
    positions: int
    rows: int
    width: int
    stream: int
    whole: int
    q: int
    kv: int
    projected: int
    gathered: int
    regrouped: bool
    gate: int
    lse: int
    head_rows: int
    weights_qkv: int
    weights_proj: int
    weights_up: int
    weights_down: int
    tile: float
    tiles: int
    fused_swiglu: bool
    reordered: bool
    qkv_bias: bool
    qk_norm: bool
    ulysses: int
    sent_kv: int
    ring: int
    wide: int
    dq_sums: int


def share_of(config: RunConfig, shape: ModelShape, kind: Family, gpu: bool) -> Share:
    """Of any rank of the run: layers are alike on all."""
    parallel, train = config.parallel, config.train
    return _share(
        shape,
        kind,
        gpu,
        2 if train.precision == "bf16" else 4,
        config.padded_length // parallel.context * train.micro_batch_size,
        train.micro_batch_size,
        (parallel.tensor, parallel.context, parallel.ulysses),
        parallel.sequence_parallel,
        parallel.mlp_chunk,
        gpu and train.swiglu_fusion,
        train.deterministic,
    )


@functools.lru_cache(maxsize=4096)
def _share(
    shape: ModelShape,
    kind: Family,
    gpu: bool,
    element: int,
    positions: int,
    batch: int,
    sizes: tuple[int, int, int],
    split: bool,
    mlp_chunk: int,
    fused_swiglu: bool,
    deterministic: bool,
) -> Share:
    tensor, context, ulysses = sizes
    heads, kv_heads = shape.heads // tensor, max(shape.kv_heads // tensor, 1)
    few = shape.kv_heads < tensor
    rows = positions // (tensor if split else 1)
    number = positions * shape.head_dim * element
    chunk = min(mlp_chunk * batch, rows) if mlp_chunk else rows
    matrix = shape.hidden * element
    return Share(
        gpu=gpu,
        element=element,
        split=split,
        batch=batch,
        positions=positions,
        rows=rows,
        width=shape.hidden,
        stream=rows * matrix,
        whole=positions * matrix,
        q=number * heads,
        kv=number * kv_heads,
        projected=number * (shape.heads + 2 * shape.kv_heads) // tensor,
        gathered=number * (shape.heads + 2 * shape.kv_heads) if few else 0,
        regrouped=kv_heads > 1 and heads != kv_heads,
        gate=positions * shape.ffn // tensor * element,
        lse=4 * positions * heads,
        head_rows=4 * positions * (heads + kv_heads),
        weights_qkv=matrix * shape.head_dim * (shape.heads + 2 * shape.kv_heads) // tensor,
        weights_proj=matrix * shape.head_dim * heads,
        weights_up=2 * matrix * shape.ffn // tensor,
        weights_down=matrix * shape.ffn // tensor,
        tile=chunk / rows,
        tiles=-(-rows // chunk) if mlp_chunk else 0,
        fused_swiglu=fused_swiglu,
        reordered=batch > 1 and ulysses > 1,
        qkv_bias=kind.qkv_bias,
        qk_norm=kind.qk_norm,
        ulysses=ulysses,
        sent_kv=number * max(kv_heads, ulysses),
        ring=context // ulysses,
        wide=2 if element == 2 else 0,
        dq_sums=-(-_MULTIPROCESSORS // (batch * heads // ulysses)) if deterministic else 1,
    )


def model_of(hf_config: dict[str, Any]) -> tuple[ModelShape, Family, bool]:
    """Sizes, kind of layers, and whether the head is the embedding, of a config.json."""
    architecture = (hf_config.get("architectures") or [""])[0]
    return ModelShape.from_hf(hf_config), family(architecture), bool(hf_config.get("tie_word_embeddings"))
