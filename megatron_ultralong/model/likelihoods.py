"""What a model says comes next: the likeliest token, and how likely a given one was, without [S, V] logits.

The head is split over the tensor-parallel ranks. Each makes its logits of a block of rows and keeps four numbers of
each row: its highest logit, where that is, the sum of exponentials, and the given token's logit if it is there. One
all-gather of these joins them. Forward only; `loss.sum_of_losses` is the differentiable one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.model.loss_options import DEFAULT, LossOptions, chunk_rows


def likelihoods(
    rows_ND: Tensor, weight_VD: Tensor, tokens_N: Tensor, group: dist.ProcessGroup, options: LossOptions = DEFAULT
) -> tuple[Tensor, Tensor]:
    """The likeliest next token of each position, and the log-likelihood of a given one.

    Args:
        rows_ND: final hidden states, the same on every rank of the group.
        weight_VD: this rank's rows of the head, V / tp, in the hidden states' dtype.
        tokens_N: int64, the given tokens.
        group: the tensor-parallel group.
        options: `chunk`, rows whose logits exist at once, and `vocabulary`, entries that are no padding.

    Returns:
        int64 [N], of equals the first; and in nats [N], in fp32 (fp64 for fp64 inputs). Logits are made in the model's
        precision; all else is fp32.
    """
    step = chunk_rows(options, weight_VD.shape[0], 1)
    found = [
        _chunk(rows_ND[first : first + step], weight_VD, tokens_N[first : first + step], group, options.vocabulary)
        for first in range(0, rows_ND.shape[0], step)
    ]
    if not found:
        return tokens_N.new_empty(0), rows_ND.new_empty(0, dtype=torch.promote_types(rows_ND.dtype, torch.float32))
    likeliest, log_likelihood = (torch.cat(parts) for parts in zip(*found, strict=True))
    return likeliest, log_likelihood


def _chunk(
    rows_ND: Tensor, weight_VD: Tensor, tokens_N: Tensor, group: dist.ProcessGroup, vocabulary: int
) -> tuple[Tensor, Tensor]:
    rows, before = weight_VD.shape[0], group.rank() * weight_VD.shape[0]
    logits_NV = (rows_ND @ weight_VD.t()).to(torch.promote_types(rows_ND.dtype, torch.float32))
    real = vocabulary - before if vocabulary else rows
    if real < rows:
        logits_NV[:, max(0, real) :] = -torch.inf
    highest_N, place_N = logits_NV.max(dim=-1)
    here_N = tokens_N - before
    elsewhere_N = (here_N < 0) | (here_N >= rows)
    given_N = logits_NV.gather(1, here_N.clamp(0, rows - 1)[:, None])[:, 0].masked_fill(elsewhere_N, -torch.inf)
    sum_N = logits_NV.sub_(highest_N.nan_to_num(neginf=0.0)[:, None]).exp_().sum(dim=-1)
    places_RN = _gather(place_N + before, group)
    highest_RN, sum_RN, given_RN = _gather(torch.stack((highest_N, sum_N, given_N)), group).unbind(1)
    best_1N = highest_RN.argmax(dim=0, keepdim=True)
    top_N = highest_RN.gather(0, best_1N)[0]
    log_sum_N = (sum_RN * (highest_RN - top_N).exp()).sum(0).log() + top_N
    return places_RN.gather(0, best_1N)[0], given_RN.amax(0) - log_sum_N


def _gather(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[...] of each rank -> [ranks, ...]."""
    if group.size() == 1:
        return own[None]
    gathered = own.new_empty(group.size() * own.shape[0], *own.shape[1:])
    dist.all_gather_into_tensor(gathered, own.contiguous(), group=group)
    return gathered.unflatten(0, (group.size(), -1))
