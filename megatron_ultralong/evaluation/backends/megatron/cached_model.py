"""A model that reads a sequence in chunks, keeps its keys and values over the ranks, and continues it token by token.

What is held beyond the weights: the cache, whose size is fixed when room is made, one chunk's activations, and the ids.
All ranks call alike; what is returned is the same on all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.context_parallel.cached_attention import Grid
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.context_parallel.kv_cache import CachedStretch, KVCache
from megatron_ultralong.engine import mcore
from megatron_ultralong.engine.device import to_device
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.megatron.reading_order import common
from megatron_ultralong.model.likelihoods import likelihoods
from megatron_ultralong.planning.generation_memory import HEAD_ROWS
from megatron_ultralong.rope.scaling import RopeScaling

Ids = npt.NDArray[np.integer]


class CachedModel:
    """A model with the cache of one sequence.

    Args:
        model: this rank's GPTModel with its weights, of one pipeline stage.
        rope: its scaling.
        chunk: tokens that a rank reads at once.

    Attributes:
        ids: of the text that is being read.
        regime: its length as far as its rope depends on it.
    """

    def __init__(self, model: Any, rope: RopeScaling, chunk: int) -> None:
        self.model = model.eval().requires_grad_(False)  # megatron-core's linear layers then do without buffers
        model.post_process = False  # GPTModel then returns normed hidden states, not [S, V] logits
        self.rope, self.chunk = rope, chunk
        attention = model.decoder.layers[0].self_attention
        self.grid: Grid = attention.core_attention.grid
        self.kv_heads: int = attention.num_query_groups_per_partition
        self.head_dim: int = attention.hidden_size_per_attention_head
        self.head: Tensor = (
            model.embedding.word_embeddings.weight
            if model.share_embeddings_and_output_weights
            else model.output_layer.weight
        )
        self.options = dataclasses.replace(model.loss_options, chunk=HEAD_ROWS)
        self.tensor_group = mcore.parallel_state.get_tensor_model_parallel_group()
        self.context_ranks = 1 if self.grid.whole is None else dist.get_world_size(self.grid.whole)
        self.cache: KVCache | None = None
        self.ids: Ids = np.empty(0, dtype=np.int64)
        self.regime = 0

    @property
    def held(self) -> int:
        """Tokens in the cache."""
        return 0 if self.cache is None else self.cache.length

    def make_room(self, tokens: int) -> None:
        """Have a cache for a sequence of so many tokens; a smaller one goes first, with what is in it.

        Raises:
            UserError: this rank has not so much memory.
        """
        if self.cache is not None and self.cache.tokens >= tokens:
            return
        self.cache = None
        try:
            self.cache = KVCache(
                layers=len(self.model.decoder.layers),
                tokens=tokens,
                kv_heads=max(self.kv_heads // self.grid.ulysses, 1),
                head_dim=self.head_dim,
                dtype=self.head.dtype,
                device=self.head.device,
                stripe=0 if self.grid.ring is None else dist.get_rank(self.grid.ring),
                ring=self.context_ranks // self.grid.ulysses,
            )
        except RuntimeError as error:  # of the allocator, on a GPU and on a CPU
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"there is no memory on rank {dist.get_rank()} for keys and values of {tokens:,} tokens ({reason}); "
                "take more context- or tensor-parallel ranks, or shorter prompts."
            ) from None

    def begin(self, ids: Ids, most: int, regime: int) -> int:
        """Go back to where the cached sequence and `ids` part.

        Args:
            ids: of the sequence to be read.
            most: tokens of it that may be kept, at most.
            regime: tokens of the sequence as far as its rope depends on them.

        Returns:
            How many tokens of `ids` are cached.
        """
        assert self.cache is not None
        if self.frequencies(regime) != self.frequencies(self.regime):
            self.cache.truncate(0)
        self.regime = regime
        self.model.rotary_pos_emb.length = regime if self.rope.depends_on_length else 0
        self.cache.truncate(min(most, common(self.ids[: self.held], ids)))
        self.ids = ids
        return self.held

    def frequencies(self, length: int) -> tuple[float, ...]:
        """What rotates a sequence of so many tokens, to be compared; () where the length does not matter."""
        if not self.rope.depends_on_length:
            return ()
        return tuple(self.rope.inverse_frequencies(self.rope.rotary_dim(self.head_dim), length).tolist())

    @torch.inference_mode()
    def read(
        self, stop: int, judged: Ids | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """Read the ids of `begin` up to position `stop`, those that are not cached, in chunks.

        Args:
            stop: behind the last position that is read.
            judged: rising positions, none of them cached, whose next ids are to be judged.
            progress: is told of the tokens of every chunk.

        Returns:
            Of `judged`: whether the next id is the likeliest, and its log-likelihood in nats.
        """
        places = np.empty(0, dtype=np.int64) if judged is None else judged
        found = torch.zeros(2, len(places), device=self.head.device)
        step = self.chunk * self.context_ranks
        for begin in range(self.held, stop, step):
            end = min(begin + step, stop)
            hidden_LD, positions = self.forward(self.ids[begin:end])
            first, last = np.searchsorted(places, (begin, end))
            self._judge(hidden_LD, positions, places[first:last], found[:, first:last])
            progress(end - begin)
        if self.grid.whole is not None and len(places):
            dist.all_reduce(found, group=self.grid.whole)
        right, log_likelihood = found.cpu().numpy()
        return right > 0.5, log_likelihood

    def _judge(self, hidden_LD: Tensor, positions: Ids, places: Ids, found_2P: Tensor) -> None:
        """Put what this rank knows of `places` into `found_2P`; the other ranks know the rest."""
        mine = np.flatnonzero(np.isin(places, positions, assume_unique=True))
        if not len(mine):
            return
        at = np.searchsorted(positions, places)
        device = hidden_LD.device
        rows = to_device(torch.from_numpy(at[mine]), device)
        next_N = to_device(torch.from_numpy(self.ids[places[mine] + 1].astype(np.int64)), device)
        likeliest_N, log_likelihood_N = likelihoods(hidden_LD[rows], self.head, next_N, self.tensor_group, self.options)
        columns = to_device(torch.from_numpy(mine), device)
        found_2P[0, columns] = (likeliest_N == next_N).float()
        found_2P[1, columns] = log_likelihood_N.float()

    @torch.inference_mode()
    def next_token(self, token: int) -> int:
        """Read one more token, and say which is likeliest after it: rank 0's word, where rounding might differ."""
        hidden_1D, _ = self.forward(np.array([token]))
        likeliest_1, _ = likelihoods(
            hidden_1D, self.head, torch.zeros_like(hidden_1D[:, 0], dtype=torch.int64), self.tensor_group, self.options
        )
        if dist.get_world_size() > 1:
            dist.broadcast(likeliest_1, src=0)
        return int(likeliest_1)

    def forward(self, ids: Ids) -> tuple[Tensor, Ids]:
        """The sequence's next tokens through the model.

        Returns:
            Final hidden states [L, D] of the tokens that this rank computes, and the positions that it alone vouches
            for, which are of the first rows.
        """
        assert self.cache is not None
        stretch = self.cache.stretch(len(ids))
        if stretch.tokens == 1:
            held = np.array([stretch.start])
            own = held if self.grid.whole is None or dist.get_rank(self.grid.whole) == 0 else held[:0]
        else:
            share = stretch.share(self.cache.stripe, self.grid.place, self.grid.ulysses)
            held = np.arange(share.start, share.stop, share.step)
            own = held[held < stretch.stop]
            held = np.minimum(held, stretch.stop - 1)  # padding, which nothing attends to
        tokens_1L = torch.from_numpy(ids[held - stretch.start].astype(np.int64))[None]
        positions_1L = torch.from_numpy(held)[None]
        hidden_L1D = self.model(
            input_ids=to_device(tokens_1L, self.head.device),
            position_ids=positions_1L,
            attention_mask=None,
            packed_seq_params=SequenceLayout(position_ids=positions_1L, cached=CachedStretch(self.cache, stretch)),
        )
        self.cache.advance(stretch)
        return hidden_L1D[:, 0], own
