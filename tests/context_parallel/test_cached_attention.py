"""A sequence read in pieces over a striped cache, against whole attention in fp64: every piece's output."""

import pytest
import torch

from megatron_ultralong.context_parallel import kernels
from megatron_ultralong.context_parallel.cached_attention import Grid, cached_attention
from megatron_ultralong.context_parallel.kv_cache import CachedStretch, KVCache
from tests.context_parallel import ring_ranks

S, N, K, H = 61, 8, 2, 16
PIECES = ([61], [1] * 3 + [17, 2, 1, 30, 8], [2, 3, 5, 1, 1, 49], [40, 1, 1, 1, 18])


def read(attend, rank, size, tensors, pieces, back):
    """Positions that this rank vouches for, and their outputs; `back`: the last part is read twice."""
    q, k, v = tensors
    groups = {} if attend is None else attend.keywords
    heads, ring = groups.get("heads_group"), groups.get("ring_group", groups.get("group"))
    grid = Grid(ring_ranks.WHOLE.get(size), heads, ring)
    u = grid.ulysses
    cache = KVCache(
        layers=2,
        tokens=S,
        kv_heads=max(K // u, 1),
        head_dim=H,
        dtype=q.dtype,
        device=q.device,
        stripe=rank // u,
        ring=size // u,
    )
    positions, outputs = [], []

    def piece(tokens):
        cached = CachedStretch(cache, cache.stretch(tokens))
        stretch = cached.stretch
        held = torch.arange(stretch.start, stretch.stop)
        if tokens > 1:
            held = torch.tensor(stretch.share(cache.stripe, grid.place, u))
        real = held < stretch.stop  # the others are padding
        held.clamp_(max=S - 1)
        for layer in (1, 0):
            parts = (x[:, held] * (layer + 1) for x in (q, k, v))
            out = cached_attention(*parts, layer=layer, cached=cached, grid=grid, scale=0.3 / (layer + 1) ** 2)
        positions.append(held[real])
        outputs.append(out[:, real])
        cache.advance(stretch)

    for tokens in pieces:
        piece(tokens)
    if back:
        cache.truncate(back)
        piece(S - back)
    return torch.cat(positions), torch.cat(outputs, dim=1)


def inputs(dtype=torch.float64):
    torch.manual_seed(3)
    return [torch.randn(1, S, heads, H, dtype=dtype) for heads in (N, K, K)]


def check(results, expected, limit):
    seen = set()
    for positions, out in results:
        assert (out.double() - expected[:, positions]).abs().max() < limit
        seen |= set(positions.tolist())
    assert seen == set(range(S))


@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_one_process(pieces):
    tensors = inputs()
    check([read(None, 0, 1, tensors, pieces, 23)], kernels.reference(*tensors, 0.3), 1e-13)


@pytest.mark.gloo
@pytest.mark.parametrize("size, ulysses", [(2, 1), (3, 1), (8, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8)])
def test_ranks(ranks, size, ulysses):
    tensors = inputs()
    expected = kernels.reference(*tensors, 0.3)
    for pieces in PIECES:
        check(ranks.run(size, read, tensors, pieces, 23, ulysses=ulysses), expected, 1e-13)


@pytest.mark.gloo
def test_bf16_is_as_near_as_the_ring(ranks):
    """Parts are rounded to bf16 by the kernel, folded in fp32, and rounded once: as training's ring does it."""
    tensors = inputs(torch.bfloat16)
    exact = kernels.reference(*(x.double() for x in tensors), 0.3)
    whole = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in tensors), is_causal=True, enable_gqa=True, scale=0.3
    ).transpose(1, 2)
    plain = float((whole.double() - exact).abs().max())
    check(ranks.run(4, read, tensors, PIECES[1], 0), exact, 2 * plain)
