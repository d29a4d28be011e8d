"""The two ends of the model: the embedding, and the head with its loss."""

from __future__ import annotations

from megatron_ultralong.model.loss_options import LossOptions, chunk_rows
from megatron_ultralong.planning.memory_parts.live import Live
from megatron_ultralong.planning.memory_parts.share import Share


def loss_memory(
    rows: int, labels: int, width: int, vocabulary: int, element: int, ranks: int = 1, norms: bool = False
) -> int:
    """Bytes that model/loss.py holds at most for the head and the loss, beyond its inputs; on one rank.

    Two gradients stay: the hidden states' and, in fp32, the head's. Beside them a chunk's logits, in fp32 and in the
    model's precision, or what it adds to either gradient; with sequence parallelism also its gathered hidden states.
    (On a CPU that addition makes an fp32 copy of a bf16 head's gradient besides. Where only some positions of a chunk
    have labels, their hidden states and gradients are copies, of at most a chunk's size each.)

    Args:
        rows: positions in a chunk, over all ranks that gather them.
        labels: positions of this rank's hidden states.
        width: D.
        vocabulary: V / tp.
        element: bytes of a number in the model's precision, 2 or 4.
        ranks: that gather them: tp with sequence parallelism, else 1.
        norms: the last norm is taken chunk by chunk.
    """
    rows = min(rows, labels * ranks)
    logits, chunk, head = rows * vocabulary, rows * width * element, vocabulary * width
    gathered = chunk if ranks > 1 or norms else 0
    if element == 4:
        most = 4 * logits + gathered
    else:
        most = max((4 + element) * logits, element * (logits + head), element * logits + gathered)
    return kept_by_loss(labels, width, vocabulary, element) + gathered + most


def kept_by_loss(labels: int, width: int, vocabulary: int, element: int) -> int:
    """Of that, what stays until backward: the gradients of the hidden states and of the head."""
    return labels * width * element + 4 * vocabulary * width


def eager_loss_memory(labels: int, vocabulary: int) -> int:
    """The same of whole logits and torch's cross_entropy: three of them in fp32 at the peak, in backward."""
    return 3 * 4 * labels * vocabulary


def loss_of(s: Share, vocabulary: int, chunk: int, ranks: int) -> int:
    """`loss_memory` of a run: all positions have labels.

    Args:
        s: the rank's share.
        vocabulary: V / tp.
        chunk: train.loss_chunk.
        ranks: tensor-parallel ranks if the sequence is split over them, else 1.
    """
    rows = chunk_rows(LossOptions(chunk=chunk), vocabulary, ranks) * ranks
    return loss_memory(rows, s.rows, s.width, vocabulary, s.element, ranks, s.head_groups.count > 0)


def embedding_forward(live: Live, s: Share) -> None:
    """Leaves the first layer's input."""
    live.doing = "embedding, forward"
    live.take(s.whole)
    if s.split:
        live.take(s.stream)
        live.drop(s.whole)
    if s.split or s.batch > 1:
        live.brief(s.stream)


def embedding_backward(live: Live, s: Share, tensor: int, table: int) -> None:
    """From the gradient of the first layer's input, which it frees; `table`: bytes of the embedding."""
    live.doing = "embedding, backward"
    if s.split:
        live.take(s.whole)
        live.drop(s.stream)
    if tensor > 1:
        live.brief(s.whole)  # with rows of other ranks' tokens cleared
    live.brief(table)
    live.drop(s.whole)
