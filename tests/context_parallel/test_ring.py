"""Ring attention against full attention in fp64: outputs and dq, dk, dv, over ranks, heads and documents."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ultralong.context_parallel import kernels, zigzag
from megatron_ultralong.context_parallel.ring import ring_attention
from megatron_ultralong.errors import UserError
from tests.context_parallel.ring_ranks import flash_in_one_process, with_gradients

pytestmark = pytest.mark.gloo

PARTS = ("out", "dq", "dk", "dv")
HEAD_DIMS = (32, 64, 128)
# Rounding of fp64 and fp32 over sums of some hundred terms: far below the 1e-10 and 1e-5 that are asked for.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}


def inputs(S, heads=4, kv_heads=2, head_dim=16, batch=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, S, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]


def exact(tensors, **arguments):
    wide = [x.double() for x in tensors]
    return with_gradients(lambda *qkv: kernels.reference(*qkv, **arguments), *wide)


def errors(found, wanted):
    """Relative errors in norm; absolute where the gradient is nearly 0, as for documents of one token."""
    return {
        part: ((a.double() - b).norm() / b.norm().clamp(min=1)).item()
        for part, a, b in zip(PARTS, found, wanted, strict=True)
    }


def assert_exact(ranks, size, tensors, cu_seqlens=None, causal=True, scale=0.3):
    found = ranks.attend(size, tensors, cu_seqlens=cu_seqlens, causal=causal, softmax_scale=scale)
    wanted = exact(tensors, scale=scale, cu_seqlens=cu_seqlens, causal=causal)
    assert all(torch.isfinite(x).all() for x in found)
    dtype = tensors[0].dtype
    assert all(x.dtype == dtype for x in found)
    worst = errors(found, wanted)
    assert max(worst.values()) <= TOLERANCE[dtype], worst


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_equals_full_attention(ranks, size, dtype):
    for group, head_dim, batch in ((1, 32, 1), (2, 64, 2), (4, 128, 1), (8, 64, 1)):
        tensors = inputs(240, heads=8, kv_heads=8 // group, head_dim=head_dim, batch=batch, dtype=dtype)
        assert_exact(ranks, size, tensors, scale=head_dim**-0.5)
        assert_exact(ranks, size, tensors, scale=head_dim**-0.5, cu_seqlens=(0, 1, 30, 60, 61, 119, 239, 240))


@st.composite
def packed(draw):
    """A ring, a sequence of odd chunks, and documents: anywhere, on chunk borders, of one token, or one over all."""
    size = draw(st.sampled_from([1, 2, 3, 4, 8]))
    chunk = draw(st.integers(1, 9))
    length = 2 * size * chunk
    anywhere = st.integers(1, length - 1)
    on_borders = st.integers(1, 2 * size - 1).map(lambda k: k * chunk)
    cuts = draw(st.sets(anywhere | on_borders, max_size=draw(st.sampled_from([0, 2, 5, length]))))
    return size, length, (0, *sorted(cuts), length), draw(st.booleans()), draw(st.integers(1, 2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=packed(), group=st.sampled_from([1, 2, 4, 8]), head_dim=st.sampled_from(HEAD_DIMS), seed=st.integers(0, 99))
def test_any_documents(ranks, case, group, head_dim, seed):
    size, length, bounds, causal, batch = case
    tensors = inputs(length, heads=8, kv_heads=8 // group, head_dim=head_dim, batch=batch, seed=seed)
    assert_exact(ranks, size, tensors, cu_seqlens=bounds, causal=causal)


def test_sequence_of_several_kernel_bands(ranks):
    """Long enough that squares of 129 to 1,024 are computed in bands, and documents of up to 64 as batches."""
    bounds = (0, 3, 7, 12, 70, 134, 334, 900, 901, 1200, 1264, 1300, 1301, 1304, 1344)
    for dtype in TOLERANCE:
        tensors = inputs(1344, heads=2, kv_heads=1, dtype=dtype)
        for size in (1, 2, 4):
            assert_exact(ranks, size, tensors, cu_seqlens=bounds)
            assert_exact(ranks, size, tensors)
    assert_exact(ranks, 2, tensors, cu_seqlens=bounds, causal=False)


def test_a_rank_whose_rows_count_for_nothing(ranks):
    """All labels of rank 1 of 4 masked: its output has no gradient, and its keys still get theirs."""
    tensors = inputs(48)
    first, second = zigzag.spans(48, 1, 4)
    for start, stop in (first, second):
        tensors[3][:, start:stop] = 0
    assert_exact(ranks, 4, tensors)
    assert_exact(ranks, 4, tensors, cu_seqlens=(0, 5, 29, 48))
    *_, dk, _ = ranks.attend(4, tensors)
    assert dk[:, first[0] : first[1]].abs().max() > 0


def test_documents_that_end_on_chunk_borders_send_nothing(ranks):
    assert_exact(ranks, 4, inputs(64), cu_seqlens=tuple(range(0, 65, 8)))


def test_gradients_pass_a_rank_that_saw_no_keys(ranks):
    assert_exact(ranks, 3, inputs(36), cu_seqlens=(0, 6, 12, 24, 36))


def test_huge_logits_are_no_nan(ranks):
    tensors = inputs(64)
    tensors[0] *= 1e3
    found = ranks.attend(4, tensors, softmax_scale=1.0)
    wanted = exact(tensors, scale=1.0)
    assert all(torch.isfinite(x).all() for x in found)
    assert max(errors(found, wanted).values()) < 1e-11  # logits of 1e4 cost four digits


def test_the_default_scale_is_that_of_attention(ranks):
    tensors = inputs(32)
    assert max(errors(ranks.attend(2, tensors), exact(tensors, scale=16**-0.5)).values()) < 1e-13


def test_the_same_bits_every_time(ranks):
    tensors = inputs(480, dtype=torch.float32)
    once, again = (ranks.attend(4, tensors, cu_seqlens=(0, 77, 300, 480)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_bf16_errors_do_not_grow_with_the_ring(ranks):
    """At most twice that of PyTorch's flash attention in one process, for any number of ranks (measured: up to 1.4)."""
    tensors = inputs(960, heads=4, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    wanted = exact(tensors, scale=64**-0.5)
    one = errors(with_gradients(flash_in_one_process, *tensors), wanted)
    for size in (1, 2, 3, 4, 8):
        ring = errors(ranks.attend(size, tensors), wanted)
        assert all(ring[part] <= 2 * one[part] for part in PARTS), (size, ring, one)


def test_gradients_of_any_layout_are_taken(ranks):
    """A sum's gradient is one number expanded, which no kernel takes as it is."""
    q, k, v, _ = (x.requires_grad_() for x in inputs(32))
    ring_attention(q, k, v, group=None).sum(1)[:, 0].sum().backward()
    wanted = kernels.reference(*(x.detach() for x in (q, k, v)), 0.25)
    assert torch.isfinite(q.grad).all() and torch.isfinite(wanted).all()
    sideways = [x.detach().transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)]
    torch.testing.assert_close(ring_attention(*sideways, group=None, softmax_scale=0.25), wanted)


def test_bounds_may_be_a_tensor():
    q, k, v, _ = inputs(32)
    bounds = torch.tensor([0, 9, 32], dtype=torch.int32)
    assert torch.equal(
        ring_attention(q, k, v, group=None, cu_seqlens=bounds),
        ring_attention(q, k, v, group=None, cu_seqlens=(0, 9, 32)),
    )


def test_tensors_that_do_not_fit_are_refused():
    q, k, v, _ = inputs(32)
    for bad, said in (
        ((q[0], k[0], v[0]), r"q must have four dimensions, .* it is \[32, 4, 16\]"),
        ((q, k, v[:, :16]), "k and v must be alike"),
        ((q[:, :16], k, v), "agree with q in B, L and H"),
        ((q[:, :, :3], k, v), "K must divide N"),
        ((q.float(), k, v), "of one dtype on one device, not torch.float32 on cpu, torch.float64 on cpu"),
        ((q, k.to("meta"), v), "of one dtype on one device"),
        ((q[:0], k[:0], v[:0]), r"none of 0; it is \[0, 32, 4, 16\]"),
        ((q.int(), k.int(), v.int()), r"q must be a dense tensor of fp64, .* it is \[1, 32, 4, 16\], torch.int32"),
        ((q.numpy(), k, v), "it is ndarray"),
        ((q, k.to_sparse(), v), "k must be a dense tensor"),
    ):
        with pytest.raises(ValueError, match=said):
            ring_attention(*bad, group=None)
    for name, bad in (("group", "cp"), ("softmax_scale", "a"), ("softmax_scale", float("nan")), ("causal", 1)):
        with pytest.raises(ValueError, match=f"{name} must be .* {bad!r}"):
            ring_attention(q, k, v, **{"group": None, name: bad})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ((0, 31), "must go from 0 to the sequence's 32 tokens, and are 0 .. 31"),
        ((1, 32), "must go from 0"),
        ((0, 40), "must go from 0"),
        ((), "must go from 0 to the sequence's 32 tokens, and are none"),
        ((0, 9, 5, 32), "must not fall, and 9 is followed by 5"),
        ((0, 8.5, 32), r"must be whole numbers in one dimension, and is \(0, 8.5, 32\)"),
        (torch.tensor([[0, 32]]), "must be whole numbers"),
        (torch.tensor([0.0, 32.0]), "must be whole numbers"),
        (32, "must be whole numbers"),
    ],
    ids=str,
)
def test_bounds_that_are_none_are_refused(bad, said):
    q, k, v, _ = inputs(32)
    with pytest.raises(UserError, match=f"cu_seqlens {said}"):
        ring_attention(q, k, v, group=None, cu_seqlens=bad)


def test_what_asks_for_one_gradient_gets_one_and_no_second_derivative():
    q, k, v, grad = inputs(32)
    q.requires_grad_()
    out = ring_attention(q, k, v, group=None)
    (once,) = torch.autograd.grad(out, q, grad, retain_graph=True)
    torch.testing.assert_close(once, exact([q.detach(), k, v, grad], scale=0.25)[1])
    (of_square,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_square.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ring_attention(q, k, v, group=None), out)
