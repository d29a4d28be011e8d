"""Keys and values of the text that a transformers model read last, so that the next one's common beginning is not read.

transformers' own cache grows by concatenation, which copies all of it for every new token; here each layer's keys and
values lie in room made beforehand. Memory: 2 x layers x KV heads x head dim x room, in the model's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values [B, K, S, H] as views of the first S places of a larger room."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 0
        self._stores: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put new keys and values [B, K, n, H] behind those that are there, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first = self.get_seq_length()
        last = first + key_states.shape[-2]
        new = (key_states, value_states)
        if not self._stores or last > self._stores[0].shape[-2]:
            self._move(new, first, max(last, self.room))
        for store, states in zip(self._stores, new, strict=True):
            store[:, :, first:last] = states
        self.crop_to(last)
        return self.keys, self.values

    def crop_to(self, count: int) -> None:
        """Forget all but the first `count` tokens."""
        if self._stores:
            self.keys, self.values = (store[:, :, :count] for store in self._stores)

    def _move(self, new: tuple[torch.Tensor, torch.Tensor], kept: int, room: int) -> None:
        old, self._stores = self._stores, []
        for index, states in enumerate(new):
            shape = (*states.shape[:2], room, states.shape[-1])
            self._stores.append(torch.empty(shape, dtype=states.dtype, device=states.device))
            if old:
                self._stores[index][:, :, :kept] = old[index][:, :, :kept]


class PrefixCache:
    """The cache of one text at a time.

    Args:
        config: the model's; with sliding windows nothing can be kept from one text for the next.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        self._plain = kinds == {"full_attention"} and not (windowed and getattr(config, "layer_types", None) is None)
        self.clear()

    def clear(self) -> None:
        """Let go of the memory."""
        self._ids = np.empty(0, np.int32)
        self._layers: list[RoomyLayer] = []
        self.cache: Any = None
        """What transformers takes."""

    def begin(self, ids: npt.NDArray[np.int32], needed: int, room: int) -> int:
        """Keep what the text before has in common with `ids`, up to `needed`, and make room for `room` tokens in all.

        Returns:
            How many tokens are there already.
        """
        known = common_prefix(self._ids, ids[:needed]) if self._plain else 0
        if self.cache is None or not known:
            self.clear()
            self._make()
        for layer in self._layers:
            layer.crop_to(known)
            layer.room = room
        self._ids = ids[:known]
        return known

    def read(self, ids: npt.NDArray[np.int32]) -> None:
        """Say which tokens the model has read since."""
        self._ids = np.concatenate([self._ids, ids])

    def _make(self) -> None:
        if not self._plain:
            self.cache = DynamicCache(config=self._config)
            return
        self.cache = DynamicCache()
        self._layers = [RoomyLayer() for _ in range(self._config.num_hidden_layers)]
        self.cache.layers = list(self._layers)


def common_prefix(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """How many ids two texts begin with alike."""
    count = min(len(one), len(other))
    differing = np.flatnonzero(one[:count] != other[:count])
    return int(differing[0]) if len(differing) else count
