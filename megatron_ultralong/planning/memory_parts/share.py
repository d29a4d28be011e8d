"""One rank's share of the model and of a microbatch, and the bytes of each kind of tensor in it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from megatron_ultralong.config.sections import ParallelConfig, RunConfig
from megatron_ultralong.context_parallel.head_groups import HeadGroups, tile_rows
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
        kv_heads: of the rank.
        head_groups: of the lean layer; count 0: layers are megatron-core's.
        fused_gradients: products add to a lean layer's sums themselves.
        own_sums: these are the layer's own, for they are not DDP's buffers, which may be in bf16.
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
    kv_heads: int
    head_groups: HeadGroups
    fused_gradients: bool
    own_sums: bool
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
    fused = train.gradient_accumulation_fusion and parallel.head_groups > 0
    layout = _Layout(
        element=2 if train.precision == "bf16" else 4,
        batch=train.micro_batch_size,
        positions=config.padded_length // parallel.context * train.micro_batch_size,
        tensor=parallel.tensor,
        ulysses=parallel.ulysses,
        ring=parallel.context // parallel.ulysses,
        split=parallel.sequence_parallel,
        groups=parallel.head_groups,
        mlp_chunk=_tile(parallel),
        fused_gradients=fused,
        own_sums=not fused or (train.precision == "bf16" and not train.grad_reduce_in_fp32),
        fused_swiglu=gpu and train.swiglu_fusion,
        deterministic=train.deterministic,
    )
    return _share(shape, kind, gpu, layout)


def _tile(parallel: ParallelConfig) -> int:
    if not parallel.head_groups:
        return parallel.mlp_chunk
    return tile_rows(parallel.mlp_chunk, parallel.tensor if parallel.sequence_parallel else 1)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a share depends on beside the model: see `RunConfig`'s sections; `positions` are those of one rank."""

    element: int
    batch: int
    positions: int
    tensor: int
    ulysses: int
    ring: int
    split: bool
    groups: int
    mlp_chunk: int
    fused_gradients: bool
    own_sums: bool
    fused_swiglu: bool
    deterministic: bool


@functools.lru_cache(maxsize=4096)
def _share(shape: ModelShape, kind: Family, gpu: bool, at: _Layout) -> Share:
    heads, kv_heads, rows = _heads(shape, at)
    number, matrix = at.positions * shape.head_dim * at.element, shape.hidden * at.element
    every = shape.heads + 2 * shape.kv_heads
    chunk = min(at.mlp_chunk * at.batch, rows) if at.mlp_chunk else rows
    return Share(
        gpu=gpu,
        element=at.element,
        split=at.split,
        batch=at.batch,
        positions=at.positions,
        rows=rows,
        width=shape.hidden,
        stream=rows * matrix,
        whole=at.positions * matrix,
        q=number * heads,
        kv=number * kv_heads,
        projected=number * every // at.tensor,
        gathered=number * every if shape.kv_heads < at.tensor else 0,
        regrouped=kv_heads > 1 and heads != kv_heads,
        gate=at.positions * shape.ffn // at.tensor * at.element,
        lse=4 * at.positions * heads,
        head_rows=4 * at.positions * (heads + kv_heads),
        weights_qkv=matrix * shape.head_dim * every // at.tensor,
        weights_proj=matrix * shape.head_dim * heads,
        weights_up=2 * matrix * shape.ffn // at.tensor,
        weights_down=matrix * shape.ffn // at.tensor,
        kv_heads=kv_heads,
        head_groups=HeadGroups.of(heads, kv_heads, at.groups) if at.groups else HeadGroups(0, heads, kv_heads, 1),
        fused_gradients=at.fused_gradients,
        own_sums=at.own_sums,
        tile=chunk / rows,
        tiles=-(-rows // chunk) if at.mlp_chunk else 0,
        fused_swiglu=at.fused_swiglu,
        reordered=at.batch > 1 and at.ulysses > 1,
        qkv_bias=kind.qkv_bias,
        qk_norm=kind.qk_norm,
        ulysses=at.ulysses,
        sent_kv=number * max(kv_heads, at.ulysses),
        ring=at.ring,
        wide=2 if at.element == 2 else 0,
        dq_sums=-(-_MULTIPROCESSORS // (at.batch * heads // at.ulysses)) if at.deterministic else 1,
    )


def _heads(shape: ModelShape, at: _Layout) -> tuple[int, int, int]:
    """A rank's heads, its key-value heads, and the rows that its norms see."""
    rows = at.positions // (at.tensor if at.split else 1)
    return shape.heads // at.tensor, max(shape.kv_heads // at.tensor, 1), rows


def model_of(hf_config: dict[str, Any]) -> tuple[ModelShape, Family, bool]:
    """Sizes, kind of layers, and whether the head is the embedding, of a config.json."""
    architecture = (hf_config.get("architectures") or [""])[0]
    return ModelShape.from_hf(hf_config), family(architecture), bool(hf_config.get("tie_word_embeddings"))
