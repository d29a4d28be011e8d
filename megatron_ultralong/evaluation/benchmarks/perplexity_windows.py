"""Perplexity of held-out documents, in three ways that have names, as windows to read and the positions that count.

- `perplexity/by_position`: documents are cut into whole windows of the length that do not overlap; each token counts
  for the bucket of its position in its window, 0 to the length halved five times, and on. The first token of a window
  is predicted by nothing and not counted. Says how well tokens are predicted the deeper they lie.
- `perplexity/last_window`: the same last tokens (`stride` of them) of each document's first D tokens, read with as much
  before them as each length takes; D is the longest length asked for. Says what more context is worth, on equal tokens.
- `perplexity/sliding_window`: the first D tokens of each document, by a window of the length that moves on by `stride`
  tokens, of which the new ones count (Press et al. 2022, "Train short, test long", appendix B; YaRN's tables use a
  stride of 256). The first window counts all but its first token. Every length counts the same tokens.

No token is put before a window. Held in memory: 4 bytes a token of the documents.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.evaluation.samples import TooShortError
from megatron_ultralong.progress import Progress

BY_POSITION, LAST_WINDOW, SLIDING_WINDOW = (
    "perplexity/by_position",
    "perplexity/last_window",
    "perplexity/sliding_window",
)
PERPLEXITY_TASKS = (BY_POSITION, LAST_WINDOW, SLIDING_WINDOW)

Tokens = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class TextWindow:
    """Ids to read, and half-open ranges of positions whose losses are summed; position 0 is in none.

    `labels` are the ranges as tables name them: in the window (by_position), else in the document.
    """

    task: str
    length: int
    index: int
    ids: Tokens
    buckets: tuple[tuple[int, int], ...]
    labels: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        """The first position that counts."""
        return self.buckets[0][0]

    def sums(self, losses: npt.NDArray[np.float32]) -> list[tuple[int, int, float, int]]:
        """(from, to, nats, tokens) of each bucket, from the losses at `start` and after; sums are fp64."""
        found = []
        for (low, high), label in zip(self.buckets, self.labels, strict=True):
            part = losses[low - self.start : high - self.start]
            found.append((*label, float(part.sum(dtype=np.float64)), len(part)))
        return found


def tokenize(documents: Iterable[str], tokenizer: ChatTokenizer, progress: Progress) -> list[Tokens]:
    """Ids of each document."""
    found = []
    for document in documents:
        found.append(np.array(tokenizer.encode(document), np.int32))
        progress.advance()
    return found


def windows(
    task: str, documents: Sequence[Tokens], length: int, longest: int, limit: int, stride: int
) -> Iterator[TextWindow]:
    """What a task reads at a length.

    Args:
        task: one of `PERPLEXITY_TASKS`.
        documents: ids of each.
        length: tokens of context at most.
        longest: D above.
        limit: windows (by_position) or documents (the others) at most, evenly spread over those that are long enough.
        stride: see above.

    Raises:
        TooShortError: no document is long enough, or the length is no longer than `stride`.
    """
    if task != BY_POSITION and length <= stride:
        raise TooShortError(f"a window of {length:,} tokens cannot count {stride:,} after others; lower --stride.")
    needed = length if task == BY_POSITION else longest
    if not any(len(ids) >= needed for ids in documents):
        raise TooShortError(
            f"no document has {needed:,} tokens, the longest has {max(map(len, documents), default=0):,}; give longer "
            "ones, or ask for shorter lengths."
        )
    if task == BY_POSITION:
        pieces = [(ids, first) for ids in documents for first in range(0, len(ids) - length + 1, length)]
        labels = tuple(itertools.pairwise(bucket_edges(length)))
        buckets = tuple((max(low, 1), high) for low, high in labels)
        for index, (ids, first) in enumerate(spread(pieces, limit)):
            yield TextWindow(task, length, index, ids[first : first + length], buckets, labels)
        return
    chosen = spread([ids for ids in documents if len(ids) >= longest], limit)
    if task == LAST_WINDOW:
        label = (longest - stride, longest)
        for index, ids in enumerate(chosen):
            yield TextWindow(
                task, length, index, ids[longest - length : longest], ((length - stride, length),), (label,)
            )
        return
    yield from itertools.chain.from_iterable(
        _sliding(ids[:longest], length, stride, number) for number, ids in enumerate(chosen)
    )


def _sliding(ids: Tokens, length: int, stride: int, number: int) -> Iterator[TextWindow]:
    """The windows of one document; each one's new tokens count."""
    steps = -(-(len(ids) - length) // stride)
    for step in range(steps + 1):
        end = min(length + step * stride, len(ids))
        new = length - 1 if step == 0 else end - (length + (step - 1) * stride)
        piece = ids[end - length : end]
        index = number * (steps + 1) + step
        yield TextWindow(SLIDING_WINDOW, length, index, piece, ((length - new, length),), ((0, len(ids)),))


def bucket_edges(length: int, buckets: int = 6) -> list[int]:
    """0, then halvings of `length` upwards: for 2048 and 4 buckets 0, 256, 512, 1024, 2048."""
    return [0, *sorted({length >> shift for shift in range(buckets) if length >> shift > 1})]


def spread(items: Sequence[object], limit: int) -> list:
    """`limit` of them, evenly spread over all there are, or all."""
    kept = min(limit, len(items))
    return [items[index * len(items) // kept] for index in range(kept)]
