"""Attention of a sequence's next tokens over all that is cached of it on the ranks: queries travel, keys stay.

A chunk's queries visit the ranks in turn: at step s a rank has those of the rank s places on, attends to its own
keys with them (all that are cached, and the causal part of the chunk's), and sends the output and log-sum-exp home,
where they are folded in. While a step is computed the next queries come and the last result goes. So a chunk costs
N H values a token out and N (H + 1) in fp32 back, R - 1 times, whatever is cached; passing keys around instead, as
training does, would send the whole cache again for every chunk. No buffer depends on the cached length.

A single token is computed by every rank, which attends to its own keys: one all-gather of N (H + 1) numbers a rank and
layer joins the parts. With `ulysses`, u neighbours share a stripe of the sequence and divide its heads: an all-to-all
before and after, for a chunk; for one token each takes its own.

The slow twin is `ring_attention` over the whole sequence (tests/context_parallel/test_cached_attention.py).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.context_parallel import kernels, online_softmax
from megatron_ultralong.context_parallel.kv_cache import CachedStretch
from megatron_ultralong.context_parallel.ring_exchange import Exchange, Neighbours
from megatron_ultralong.context_parallel.ulysses import all_to_all, by_head, heads_in_order

_QUERIES, _RESULTS = 3, 4  # tags


@dataclasses.dataclass(frozen=True)
class Grid:
    """The context-parallel ranks as cached attention uses them; None where a group is of this rank alone.

    Attributes:
        whole: all of them, rank c = o u + i.
        heads: the inner group of u neighbours that divide heads.
        ring: the outer group of R ranks, over which the sequence is striped.
    """

    whole: dist.ProcessGroup | None = None
    heads: dist.ProcessGroup | None = None
    ring: dist.ProcessGroup | None = None

    @property
    def place(self) -> int:
        """i, this rank's number among those that divide heads."""
        return dist.get_rank(self.heads) if self.heads is not None else 0

    @property
    def ulysses(self) -> int:
        """u."""
        return dist.get_world_size(self.heads) if self.heads is not None else 1


def cached_attention(
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    *,
    layer: int,
    cached: CachedStretch,
    grid: Grid,
    scale: float,
) -> Tensor:
    """Write the tokens' keys and values into the cache, and attend to everything up to each token.

    Every rank calls it, layer after layer. Forward only.

    Args:
        q_BLNH: of the tokens that this rank computes, [1, L, N, H].
        k_BLKH: [1, L, K, H].
        v_BLKH: [1, L, K, H].
        layer: from 0.
        cached: which tokens of which sequence.
        grid: the ranks.
        scale: factor on the logits.

    Returns:
        [1, L, N, H] in q's dtype; rows of padding hold anything.
    """
    if cached.alone:
        return _one_token(q_BLNH, k_BLKH, v_BLKH, layer, cached, grid, scale)
    if grid.heads is not None:
        sizes = [max(x.shape[2] // grid.ulysses, 1) for x in (q_BLNH, k_BLKH, v_BLKH)]
        parts = [by_head(x, grid.ulysses) for x in (q_BLNH, k_BLKH, v_BLKH)]
        received_uBLNH = all_to_all(torch.cat(parts, dim=3), grid.heads)
        q_BLNH, k_BLKH, v_BLKH = received_uBLNH.movedim(0, 1).flatten(1, 2).split(sizes, dim=2)
    cached.cache.write(layer, cached.stretch, k_BLKH, v_BLKH)
    out_BLNH = _visit(q_BLNH, _Keys(layer, cached, scale), grid).to(q_BLNH.dtype)
    if grid.heads is not None:
        shares_uBLNH = out_BLNH.unflatten(1, (grid.ulysses, -1)).movedim(1, 0).contiguous()
        out_BLNH = heads_in_order(all_to_all(shares_uBLNH, grid.heads))
    return out_BLNH


@dataclasses.dataclass(frozen=True)
class _Keys:
    """This rank's keys and values of a layer, as queries of any stripe see them."""

    layer: int
    cached: CachedStretch
    scale: float

    def attend(self, q_BLNH: Tensor, stripe: int) -> tuple[Tensor, Tensor]:
        """Output [1, L, N, H] and log-sum-exp [1, L, N] in fp32 (fp64) of a stripe's queries, -inf where none is seen.

        One rectangle over what was cached before the chunk, and one causal square within it.
        """
        stretch, cache = self.cached.stretch, self.cached.cache
        wide = torch.promote_types(q_BLNH.dtype, torch.float32)
        out_BLNH = torch.zeros(q_BLNH.shape, dtype=wide, device=q_BLNH.device)
        lse_BLN = out_BLNH.new_full(out_BLNH.shape[:3], -torch.inf)
        queries, before = stretch.rows(stripe), stretch.before(cache.stripe)
        if queries and before:
            k, v = cache.read(self.layer, 0, before)
            self._fold(out_BLNH[:, :queries], lse_BLN[:, :queries], q_BLNH[:, :queries], k, v, False)
        skipped, side = stretch.square(stripe, cache.stripe)
        if side:
            rows = slice(skipped, skipped + side)
            k, v = cache.read(self.layer, before, before + side)
            self._fold(out_BLNH[:, rows], lse_BLN[:, rows], q_BLNH[:, rows], k, v, True)
        return out_BLNH, lse_BLN

    def _fold(self, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
        online_softmax.fold(out, lse, *kernels.forward(q, k, v, causal, self.scale))


def _visit(q_BLNH: Tensor, keys: _Keys, grid: Grid) -> Tensor:
    """A chunk's queries at every rank's keys: the output of this rank's, in fp32 (fp64)."""
    if grid.ring is None or dist.get_world_size(grid.ring) == 1:
        return keys.attend(q_BLNH, 0)[0]
    ring = Neighbours(grid.ring)
    ring.connect(q_BLNH.device)
    own_LNH, rank, size = q_BLNH[0].contiguous(), ring.rank, ring.size
    visitors = [torch.empty_like(own_LNH) for _ in range(min(2, size - 1))]
    coming = _pass(ring, own_LNH, visitors[0], 1, size)
    out_BLNH, lse_BLN = keys.attend(q_BLNH, rank)
    results = _Results(ring, out_BLNH, lse_BLN)
    for step in range(1, size):
        coming.finish()
        q_LNH = visitors[(step - 1) % 2]
        if step + 1 < size:
            coming = _pass(ring, own_LNH, visitors[step % 2], step + 1, size)
        results.send(step, *keys.attend(q_LNH[None], (rank + step) % size))
    results.arrive()
    return out_BLNH


def _pass(ring: Neighbours, own_LNH: Tensor, visitor_LNH: Tensor, step: int, size: int) -> Exchange:
    """Begin to send this rank's queries to where they are wanted at a step, and to receive those wanted here."""
    whole = ((0, own_LNH.shape[0]),)
    what = f"queries for step {step + 1} of {size}"
    return ring.start(own_LNH, whole, visitor_LNH, whole, what=what, tag=_QUERIES, distance=step)


class _Results:
    """Outputs with their log-sum-exp on the way home: one being sent, one being received."""

    def __init__(self, ring: Neighbours, out_BLNH: Tensor, lse_BLN: Tensor) -> None:
        self.ring, self.out, self.lse = ring, out_BLNH, lse_BLN
        _, L, N, H = out_BLNH.shape
        self.sent, self.received = (out_BLNH.new_empty(L, N, H + 1) for _ in range(2))
        self.under_way: Exchange | None = None

    def send(self, step: int, out_BLNH: Tensor, lse_BLN: Tensor) -> None:
        """Begin to send what was found for the rank `step` places on, once the last result has come and gone."""
        self.arrive()
        self.sent[..., :-1], self.sent[..., -1] = out_BLNH[0], lse_BLN[0]
        whole = ((0, self.sent.shape[0]),)
        what = f"outputs of step {step + 1} of {self.ring.size}"
        self.under_way = self.ring.start(
            self.sent, whole, self.received, whole, what=what, tag=_RESULTS, distance=-step
        )

    def arrive(self) -> None:
        """Wait for what is under way, and fold what has come into this rank's output."""
        if self.under_way is not None:
            self.under_way.finish()
            self.under_way = None
            online_softmax.fold(self.out, self.lse, self.received[None, ..., :-1], self.received[None, ..., -1])


def _one_token(
    q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, layer: int, cached: CachedStretch, grid: Grid, scale: float
) -> Tensor:
    """Every rank holds the token; each attends to its own keys with its own heads, and all join the parts."""
    cache, u = cached.cache, grid.ulysses
    q, k, v = (_own_heads(x, grid.place, u) for x in (q_BLNH, k_BLKH, v_BLKH))
    cache.write(layer, cached.stretch, k, v)
    rows, n, H = cache.rows(cached.stretch.stop), q.shape[2], q.shape[3]
    wide = torch.promote_types(q.dtype, torch.float32)
    part = torch.zeros(n, H + 1, dtype=wide, device=q.device)
    if rows:
        # Query heads of a key head as rows of one block, so that keys and values are read once.
        grouped_BGKH = q.view(1, k.shape[2], -1, H).transpose(1, 2).contiguous()
        out_BGKH, lse_BGK = kernels.forward(grouped_BGKH, *cache.read(layer, 0, rows), False, scale)
        part[:, :-1], part[:, -1] = out_BGKH.transpose(1, 2).reshape(n, H), lse_BGK.transpose(1, 2).reshape(n)
    else:
        part[:, -1] = -torch.inf
    if grid.whole is None:
        return part[:, :-1].to(q.dtype).view(1, 1, n, H)
    parts = part.new_empty(dist.get_world_size(grid.whole) * n, H + 1)
    dist.all_gather_into_tensor(parts, part, group=grid.whole)
    by_stripe_RuNH = parts.view(-1, u, n, H + 1)
    shares_RuN1 = by_stripe_RuNH[..., -1:].softmax(dim=0)
    return (by_stripe_RuNH[..., :-1] * shares_RuN1).sum(0).to(q.dtype).view(1, 1, u * n, H)


def _own_heads(x_BLNH: Tensor, place: int, ulysses: int) -> Tensor:
    """The heads of rank `place` of u: as `by_head` gives them."""
    return by_head(x_BLNH, ulysses)[place] if ulysses > 1 else x_BLNH
