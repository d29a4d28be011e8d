"""Activation offload: the layer inputs that full recomputation keeps wait in host memory until backward.

With full recompute the one thing kept a layer is its input, [L, B, D]: at 262,144 positions 2.1 GB a layer of
Llama-3.1-8B in bf16, 69 GB for its 32. `saved_on_host` catches these as autograd saves them. On a GPU the copies run
on a stream of their own from and to pinned memory, and the one that backward needs next is fetched while it
works; on a CPU they are plain copies, which save nothing and are there so that the same code is tested.
PyTorch pins a power of two of bytes, 8.6 GB for a tensor of 6.4: a tensor is laid in pieces that are powers of two.
Bytes over PCIe: the input once each way, against 24 D^2 operations or more a position of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from megatron_ultralong.engine.device import to_device


@contextlib.contextmanager
def saved_on_host(width: int, dtype: torch.dtype) -> Iterator[None]:
    """Within it, the [L, B, `width`] tensors of `dtype` that autograd saves go to host memory."""
    store = _Store()
    token = _current.set(store)

    def pack(tensor: Tensor) -> Tensor | int:
        eligible = tensor.dim() == 3 and tensor.shape[2] == width and tensor.dtype == dtype
        return store.put(tensor) if eligible else tensor

    def unpack(saved: Tensor | int) -> Tensor:
        return store.get(saved) if isinstance(saved, int) else saved

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _current.reset(token)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What an autograd function keeps on the host for its backward, which says itself when to fetch more.

    Attributes:
        store: where it is.
        places: its tensors there, one after the other.
    """

    store: _Store
    places: range

    @classmethod
    def on_host(cls, *tensors: Tensor) -> Kept | None:
        """Keep these; None outside of `saved_on_host`, where they are the caller's to save."""
        store = _current.get()
        if store is None:
            return None
        places = [store.put(tensor) for tensor in tensors]
        return cls(store, range(places[0], places[-1] + 1))

    def get(self) -> list[Tensor]:
        """The tensors, on their device again."""
        return [self.store.get(place, ahead=0) for place in self.places]

    def fetch_before(self) -> None:
        """Start to fetch as many tensors that were kept before these."""
        self.store.fetch_before(self.places[0], len(self.places))


_current: ContextVar[_Store | None] = ContextVar("store", default=None)


@dataclasses.dataclass
class _Item:
    """A tensor on the host, and again on its device once it was fetched.

    Attributes:
        host: the copy, in pieces; None once it was fetched.
        shape: of the tensor.
        device: where it came from.
        fetched: the tensor there again, and the event after which it is whole.
    """

    host: list[Tensor] | None
    shape: torch.Size
    device: torch.device
    fetched: tuple[Tensor, torch.cuda.Event | None] | None = None


class _Store:
    """The saved tensors of one forward pass, in order; backward asks for them from the last to the first."""

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self.stream: torch.cuda.Stream | None = None

    def put(self, tensor: Tensor) -> int:
        """Start the copy to the host; the tensor's memory is free when the copy is done."""
        if tensor.is_cuda:
            self.stream = self.stream or torch.cuda.Stream(tensor.device)
            self.stream.wait_stream(torch.cuda.current_stream(tensor.device))
            flat = tensor.detach().contiguous().view(-1)
            with torch.cuda.stream(self.stream):
                host = [_pinned(part) for part in flat.split(powers_of_two(len(flat)))]
            flat.record_stream(self.stream)
        else:
            host = [tensor.detach().clone()]
        self.items.append(_Item(host, tensor.shape, tensor.device))
        return len(self.items) - 1

    def get(self, place: int, ahead: int = 1) -> Tensor:
        """The tensor on its device again; `ahead` before it are on their way when this returns."""
        item = self.items[place]
        self._fetch(item)
        self.fetch_before(place, ahead)
        assert item.fetched is not None
        tensor, whole = item.fetched
        item.fetched = None
        if whole is not None:
            torch.cuda.current_stream(tensor.device).wait_event(whole)
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return tensor

    def fetch_before(self, place: int, count: int) -> None:
        """Start to fetch `count` tensors that were put before `place`."""
        for item in reversed(self.items[max(place - count, 0) : place]):
            self._fetch(item)

    def _fetch(self, item: _Item) -> None:
        """Start the copy back, unless it was started already."""
        if item.host is None:
            return
        if self.stream is None:
            (host,) = item.host
            item.fetched = (to_device(host, item.device), None)
        else:
            with torch.cuda.stream(self.stream):  # behind the copy to the host on the same stream
                tensor = torch.empty(item.shape, dtype=item.host[0].dtype, device=item.device)
                parts = tensor.view(-1).split([len(part) for part in item.host])
                for part, host in zip(parts, item.host, strict=True):
                    part.copy_(host, non_blocking=True)
                whole = torch.cuda.Event()
                whole.record(self.stream)
            item.fetched = (tensor, whole)
        item.host = None


def _pinned(part: Tensor) -> Tensor:
    """A copy that is under way to pinned memory, on the current stream."""
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    return host.copy_(part, non_blocking=True)


def powers_of_two(size: int) -> list[int]:
    """Lengths that add up to `size` > 0, powers of two, the largest first; one of less than 2^20 more at the end."""
    found = [1 << place for place in range(size.bit_length() - 1, 19, -1) if size >> place & 1]
    rest = size - sum(found)
    return [*found, rest] if rest else found
