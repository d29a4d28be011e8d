"""The rotary embedding that GPTModel calls: one table of cos and sin for this rank's positions, for all layers.

megatron-core's own module builds the angles of the whole sequence on every rank before it slices them (2.1 GB at
4M tokens), and each of its layers computes cos and sin of them anew. Here the table has a row for each position that
this rank holds, its cos and sin are computed once and shared: L x rotary_dim numbers of the model's dtype, where L is
S / CP, so that 4M positions on 16 ranks cost what 256K cost on one. Chunks bound what making it takes beside.

Angles are position x frequency in fp32, formed as serving stacks form them, rounding by rounding: frequencies
that differ in the last bit are a quarter of a radian apart at 4M. Or in fp64, reduced to one turn before rounding.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import mcore
from megatron_ultralong.engine.device import current, to_device
from megatron_ultralong.model import rotate_triton
from megatron_ultralong.rope.scaling import RopeScaling

Angles = Literal["fp32", "fp64"]
_CHUNK = 1 << 14  # positions whose angles exist at a time


class Rotary(torch.nn.Module):
    """Has the interface of megatron-core's RotaryEmbedding, as far as GPTModel calls it.

    The last table is kept and given again for the same positions: a run without document masks computes one
    table, and microbatches that a pipeline has in flight share it. It is dropped as soon as positions change.
    Positions are best on the host, where they can be compared without waiting for a GPU.

    Attributes:
        length: tokens of the sequence that the positions are of, for the two kinds of rope that depend on it; 0: as
            far as the positions reach. Set it where a sequence is read in parts.

    Args:
        rope: the scaling, its attention factor included.
        rotary_dim: channels of a head that are rotated.
        angles: precision of position x frequency.
        dtype: of the table: the model's, to which every stack rounds cos and sin before it uses them.
        group: the context-parallel group, if positions are spread over one.
    """

    def __init__(
        self,
        rope: RopeScaling,
        rotary_dim: int,
        angles: Angles = "fp32",
        dtype: torch.dtype = torch.float32,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.rope, self.rotary_dim, self.angles, self.dtype, self.group = rope, rotary_dim, angles, dtype, group
        self.length = 0
        self._kept: tuple[Tensor | npt.NDArray[np.int64], Tensor, int] | None = (
            None  # positions, their table and `length`; no buffer, so never saved
        )

    @property
    def table(self) -> Tensor | None:
        """The last one."""
        return None if self._kept is None else self._kept[1]

    def get_rotary_seq_len(
        self, inference_context: Any, decoder: Any, decoder_input: Any, config: Any, layout: SequenceLayout
    ) -> Tensor:
        """What GPTModel hands to `forward`: this rank's positions, int64 [B, L]."""
        del inference_context, decoder, decoder_input, config
        assert layout.position_ids is not None
        return layout.position_ids

    def forward(self, position_ids_BL: Tensor, packed_seq: bool = False, cp_group: Any = None) -> Tensor:
        """cos and sin, each times the attention factor, side by side: [L, B, 1, rotary_dim]."""
        del packed_seq, cp_group
        if self._kept is None or self._kept[2] != self.length or not _same(self._kept[0], position_ids_BL):
            self._kept = None  # the old table goes before the new one comes
            here = position_ids_BL if position_ids_BL.is_cuda else to_device(position_ids_BL, current())
            self._kept = (_copy(position_ids_BL), self._made(here), self.length)
        return self._kept[1]

    @torch.no_grad()
    def _made(self, position_ids_BL: Tensor) -> Tensor:
        """The table, `_CHUNK` positions at a time."""
        frequencies_P = self._frequencies(position_ids_BL)
        positions_N = position_ids_BL.t().reshape(-1)
        out_NC = torch.empty(len(positions_N), self.rotary_dim, dtype=self.dtype, device=positions_N.device)
        for start in range(0, len(positions_N), _CHUNK):
            rows_NC = out_NC[start : start + _CHUNK]
            angles_NP = positions_N[start : start + _CHUNK, None].to(frequencies_P.dtype) * frequencies_P
            if self.angles == "fp64":
                angles_NP = angles_NP.remainder(2 * math.pi).float()
            rows_NC[:, : self.rotary_dim // 2] = angles_NP.cos() * self.rope.attention_factor
            rows_NC[:, self.rotary_dim // 2 :] = angles_NP.sin() * self.rope.attention_factor
        return out_NC.view(position_ids_BL.shape[1], position_ids_BL.shape[0], 1, self.rotary_dim)

    def _frequencies(self, position_ids_BL: Tensor) -> Tensor:
        """Radians a token, [P], for a batch of these positions; the two kinds that ask get its longest sequence."""
        length = self.length
        if self.rope.depends_on_length and not length:
            longest = position_ids_BL.max() + 1
            if self.group is not None:
                torch.distributed.all_reduce(longest, op=torch.distributed.ReduceOp.MAX, group=self.group)
            length = int(longest)
        if self.angles == "fp64":
            frequencies_P = torch.from_numpy(self.rope.inverse_frequencies(self.rotary_dim, length))
        else:
            frequencies_P = serving_frequencies(self.rope, self.rotary_dim, length)
        return frequencies_P.to(position_ids_BL.device)


def _copy(positions: Tensor) -> Tensor | npt.NDArray[np.int64]:
    return positions.numpy().copy() if positions.device.type == "cpu" else positions.clone()


def _same(old: Tensor | npt.NDArray[np.int64], new: Tensor) -> bool:
    """Where both lie on a GPU, this waits for it."""
    if isinstance(old, Tensor):
        return old.shape == new.shape and old.device == new.device and torch.equal(old, new)
    return new.device.type == "cpu" and np.array_equal(old, new.numpy())


def rotate(heads_LBNH: Tensor, table_LB1C: Tensor) -> Tensor:
    """Rotate the first channels of queries or keys by a table of `Rotary`; the rest pass as they are.

    The first half of the rotated channels pairs with the second, as in Hugging Face's models. Bit for bit what
    megatron-core's unfused apply_rotary_pos_emb gives. Backward is the rotation back, so that nothing is kept for it
    but the table that all layers share.
    """
    out: Tensor = _Rotation.apply(heads_LBNH, table_LB1C)
    return out


def rotate_back(grad_LBNH: Tensor, table_LB1C: Tensor) -> Tensor:
    """The gradient of what was rotated, from that of what came out."""
    return _rotated(grad_LBNH, table_LB1C, -1)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads_LBNH: Tensor, table_LB1C: Tensor) -> Tensor:
        ctx.save_for_backward(table_LB1C)
        return _rotated(heads_LBNH, table_LB1C, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (table_LB1C,) = ctx.saved_tensors
        return _rotated(gradients[0], table_LB1C, -1), None


def _rotated(heads_LBNH: Tensor, table_LB1C: Tensor, sign: int) -> Tensor:
    """heads x cos + (the halves exchanged) x (-sin, sin), over whole channels: half the time of going by halves.

    On a GPU one Triton kernel where Triton is.
    """
    dim, table_LB1C = table_LB1C.shape[-1], table_LB1C.to(heads_LBNH.dtype)
    if rotate_triton.takes(heads_LBNH):
        return rotate_triton.rotated(heads_LBNH, table_LB1C, sign)
    cos, sin = table_LB1C.chunk(2, dim=-1)
    turned = heads_LBNH[..., :dim]
    first, second = turned.chunk(2, dim=-1)
    out = turned * torch.cat((cos, cos), dim=-1)
    signed = (sin.neg(), sin) if sign > 0 else (sin, sin.neg())
    out += torch.cat((second, first), dim=-1) * torch.cat(signed, dim=-1)
    return out if dim == heads_LBNH.shape[-1] else torch.cat((out, heads_LBNH[..., dim:]), dim=-1)


class RotarySelfAttention(mcore.SelfAttention):
    """megatron-core's SelfAttention, whose queries and keys are rotated by the table that the step computed once.

    GPTModel's rotary_pos_emb travels here through the block and its recomputation; megatron-core's own use of it,
    which takes cos and sin in each layer, is passed by.
    """

    _table: Tensor | None = None  # of the forward pass under way, [L, B, 1, rotary_dim]

    def forward(self, hidden_states: Tensor, attention_mask: Any, rotary_pos_emb: Any = None, **rest: Any) -> Any:
        """As megatron-core's; `rotary_pos_emb` is a table of `Rotary`."""
        self._table = rotary_pos_emb
        try:
            return super().forward(hidden_states, attention_mask, rotary_pos_emb=None, **rest)
        finally:
            self._table = None

    def get_query_key_value_tensors(self, *arguments: Any, **options: Any) -> Any:
        """As megatron-core's, normed where the model norms, then rotated.

        What is rotated is copied, so the values are too: a view of them would keep the whole projection until backward,
        six times as much with 4 query heads a key-value head. (A norm of keys needs the projection itself.)
        """
        query_LBNH, key_LBKH, value_LBKH = super().get_query_key_value_tensors(*arguments, **options)
        if self._table is None:
            return query_LBNH, key_LBKH, value_LBKH
        if not self.config.qk_layernorm:
            value_LBKH = value_LBKH.contiguous()
        return rotate(query_LBNH, self._table), rotate(key_LBKH, self._table), value_LBKH


def serving_frequencies(rope: RopeScaling, rotary_dim: int, length: int = 0) -> Tensor:
    """`RopeScaling.inverse_frequencies` in fp32, each step rounded where transformers and vLLM round it: [P], on CPU.

    Bit for bit what transformers' ROPE_INIT_FUNCTIONS give on the same machine. Arguments and errors as there.
    """
    exponents_P = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    if rope.kind in ("ntk", "dynamic-ntk"):
        rope = dataclasses.replace(rope, kind="none", base=rope.ntk_base(rotary_dim, length))
    periods_P = rope.base**exponents_P
    if rope.kind == "longrope":
        return 1.0 / (torch.tensor(rope.list_for(rotary_dim, length), dtype=torch.float32) * periods_P)
    plain_P = 1.0 / periods_P
    if rope.kind == "none":
        return plain_P
    if rope.kind == "linear":
        return plain_P / rope.factor
    if rope.kind == "llama3" or rope.form == "paper":
        return _by_wavelength(rope, plain_P)
    low, high = rope.ramp_ends(rotary_dim)
    scaled_P = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept_P = 1 - scaled_P
    return 1.0 / (rope.factor * periods_P) * (1 - kept_P) + plain_P * kept_P


def _by_wavelength(rope: RopeScaling, plain_P: Tensor) -> Tensor:
    """Llama-3.1's rule and the paper's form, as transformers computes it."""
    wavelength_P = 2 * math.pi / plain_P
    long_P = wavelength_P > rope.original_length / rope.alpha
    between_P = ~long_P & ~(wavelength_P < rope.original_length / rope.beta)
    kept_P = (rope.original_length / wavelength_P - rope.alpha) / (rope.beta - rope.alpha)
    blend_P = (1 - kept_P) * plain_P / rope.factor + kept_P * plain_P
    return torch.where(between_P, blend_P, torch.where(long_P, plain_P / rope.factor, plain_P))
