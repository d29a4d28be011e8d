"""What a model says comes next: the likeliest token, and how likely a given one was, without [S, V] logits.

The head is split over the tensor-parallel ranks. Each makes its logits of a block of rows and keeps four numbers of
each row: its highest logit, where that is, the sum of exponentials, and the given token's logit if it is there. One
all-gather of these joins them. Forward only; `loss.sum_of_losses` is the differentiable one.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.engine.device import to_device
from megatron_ultralong.model.loss_options import DEFAULT, LossOptions, chunk_rows
from megatron_ultralong.model.norms import normed


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


def judged(
    hidden_LBD: Tensor,
    weight_VD: Tensor,
    labels_BL: Tensor,
    loss_mask_BL: Tensor,
    group: dist.ProcessGroup,
    sequence_parallel: bool = False,
    options: LossOptions = DEFAULT,
    norm: torch.nn.RMSNorm | None = None,
) -> Tensor:
    """How likely each label was, and whether it was the likeliest token.

    Arguments are those of `loss.sum_of_losses`; where the mask is 0, nothing is computed and both numbers are 0, and a
    z-loss does not count.

    Returns:
        fp32 [2, B, L], the same on every rank: the log-likelihood in nats, and 1.0 where the label is the likeliest.
    """
    ranks = group.size() if sequence_parallel else 1
    length, batch, width = hidden_LBD.shape
    rows_ND, device = hidden_LBD.reshape(-1, width), hidden_LBD.device
    labels_RN = labels_BL.t().reshape(ranks, length * batch)
    labelled_RN = loss_mask_BL.cpu().numpy().T.reshape(ranks, length * batch) != 0
    found_2RN = torch.zeros(2, ranks, length * batch, device=device)
    step = chunk_rows(options, weight_VD.shape[0], ranks)
    for first in range(0, length * batch, step):
        part = slice(first, first + step)
        places = np.flatnonzero(labelled_RN[:, part])
        if not len(places):  # on every rank, since the mask is the same on every rank
            continue
        chunk_ND = rows_ND[part] if norm is None else normed(norm, rows_ND[part])
        chunk_ND = _gather(chunk_ND, group).flatten(0, 1) if ranks > 1 else chunk_ND
        places_N = to_device(torch.from_numpy(places), device)
        tokens_N = labels_RN[:, part].reshape(-1)[places_N]
        likeliest_N, log_likelihood_N = likelihoods(chunk_ND[places_N], weight_VD, tokens_N, group, options)
        for number, values_N in enumerate((log_likelihood_N, (likeliest_N == tokens_N))):
            whole_N = torch.zeros(chunk_ND.shape[0], device=device).index_copy_(0, places_N, values_N.float())
            found_2RN[number, :, part] = whole_N.view(ranks, -1)
    return found_2RN.view(2, -1, batch).transpose(1, 2)


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
