"""Backward with the attention kept does the attention's own work only: counted operation by operation."""

import collections

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from megatron_ultralong.context_parallel.activation_recomputation import checkpoint_all_but_attention
from megatron_ultralong.context_parallel.ring import ring_attention
from megatron_ultralong.context_parallel.ulysses import ulysses_attention
from tests.ranks import leave

S, HEADS, WIDTH = 32, 4, 16


class Counter(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def attend_on_ring(q, k, v, group):
    return ring_attention(q, k, v, group=group)


def attend_with_heads_exchanged(q, k, v, group):
    return ulysses_attention(q, k, v, heads_group=group, ring_group=None)


def two_layers(attend, group, how):
    """A gradient, and the operators of forward and of backward, of two layers under `how`."""
    torch.manual_seed(0)
    weights = [torch.randn(HEADS * WIDTH, 3 * HEADS * WIDTH, requires_grad=True) for _ in range(2)]
    x = torch.randn(1, S // dist.get_world_size(group), HEADS * WIDTH, requires_grad=True)

    def layer(hidden, weight):
        q, k, v = (torch.nn.functional.normalize(hidden) @ weight).unflatten(-1, (3, HEADS, WIDTH)).unbind(2)
        return hidden + attend(q, k, v, group).flatten(2).sin()

    with Counter() as forward:
        hidden = x
        for weight in weights:
            hidden = layer(hidden, weight) if how is None else how(layer, hidden, weight)
        loss = hidden.square().sum()
    with Counter() as backward:
        loss.backward(retain_graph=True)
    first = [x.grad.clone(), *(weight.grad.clone() for weight in weights)]
    loss.backward()  # computed again once more, from the same kept results
    assert all(torch.equal(twice.grad, 2 * once) for twice, once in zip((x, *weights), first, strict=True))
    return loss.detach(), first, forward.counts, backward.counts


def fully(layer, hidden, weight):
    return checkpoint(layer, hidden, weight, use_reentrant=False)


ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
RING = ("send", "recv_", ATTENTION, f"{ATTENTION}_backward", "lerp_", "logaddexp")


def compare(rank, size, store_path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store_path, size), rank=rank, world_size=size)
    for attend in (attend_on_ring, attend_with_heads_exchanged):
        plain, kept, full = (
            two_layers(attend, dist.group.WORLD, how) for how in (None, checkpoint_all_but_attention, fully)
        )
        for other in (kept, full):
            assert torch.equal(other[0], plain[0])
            assert all(torch.equal(a, b) for a, b in zip(other[1], plain[1], strict=True))
            assert other[2][ATTENTION] == plain[2][ATTENTION] > 0
        assert [kept[3][name] for name in RING] == [plain[3][name] for name in RING]  # the ring: nothing again
        assert plain[3][ATTENTION] == 0 < plain[3][f"{ATTENTION}_backward"]
        assert full[3][ATTENTION] == plain[2][ATTENTION]  # what the count would show if it were computed again
        assert kept[3]["mm"] > plain[3]["mm"]  # the projections are
        if attend is attend_on_ring:
            assert plain[3]["send"] > 0 and full[3]["send"] > plain[3]["send"]
    leave()


@pytest.mark.gloo
def test_backward_computes_nothing_of_the_ring_again(tmp_path):
    mp.spawn(compare, (2, str(tmp_path / "store")), nprocs=2)


class Storages(TorchDispatchMode):
    """Sizes of all storages that an operator gave, and weak references to them."""

    def __init__(self):
        super().__init__()
        self.sizes, self.references = {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            self.references.append(StorageWeakRef(tensor.untyped_storage()))
            self.sizes[self.references[-1].cdata] = tensor.untyped_storage().nbytes()
        return result

    def alive(self):
        return {reference.cdata for reference in self.references if not reference.expired()}


def test_what_is_kept_is_output_and_log_sum_exp():
    def layer(x, weight):
        q, k, v = (x @ weight).unflatten(-1, (3, HEADS, WIDTH)).unbind(2)
        return ring_attention(q, k, v, group=None).flatten(2)

    x = torch.randn(1, S, HEADS * WIDTH, requires_grad=True)
    weight = torch.randn(HEADS * WIDTH, 3 * HEADS * WIDTH, requires_grad=True)
    inputs = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in (x, weight)}
    bytes_of = {}
    for name, how in (("all", lambda *given: layer(*given)), ("kept", checkpoint_all_but_attention)):
        with Storages() as storages:
            out = how(*((layer, x, weight) if name == "kept" else (x, weight)))
        bytes_of[name] = sum(storages.sizes[storage] for storage in storages.alive() - inputs)
    assert bytes_of["kept"] == out.numel() * 4 + S * HEADS * 4
    assert bytes_of["all"] == bytes_of["kept"] + 3 * out.numel() * 4  # and q, k, v
