"""The geometry of ring attention: which rectangles a rank computes at each step, and which rows travel.

A rank's two chunks lie side by side in its memory, so what it holds of one document is one range of rows, also
where the document spans both chunks. Its queries against its own keys are then causal squares, one a document.
Against another rank's keys there is no diagonal: where that rank is earlier, its first chunk precedes all of
our queries; where it is later, its whole share precedes our second chunk. What remains is plain rectangles, one for
each document that both ranks hold a part of: under causal attention at most one a step, for documents of any length.

Step s: rank r works with the share that rank (r + s) mod cp began with, which came by way of the ranks between them.
Only rows that a rank further on will need travel, so short documents send little or nothing. Pure arithmetic.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools

from megatron_ultralong.context_parallel import zigzag

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of local rows, rising, apart from each other."""


@dataclasses.dataclass(frozen=True)
class Block:
    """One rectangle of attention between held positions: rows q_start:q_stop against keys k_start:k_stop.

    Offsets count from the first position that the rank of the queries (or of the keys) holds.
    A causal block is square, and its mask is the lower triangle.
    """

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int
    causal: bool

    @property
    def rows(self) -> slice:
        """Rows of the queries."""
        return slice(self.q_start, self.q_stop)

    @property
    def keys(self) -> slice:
        """Rows of the keys and values."""
        return slice(self.k_start, self.k_stop)


@dataclasses.dataclass(frozen=True)
class LocalDocument:
    """Rows start:stop of a rank hold what it has of a document."""

    document: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Step:
    """What one rank does in one step of the ring.

    Attributes:
        blocks: rectangles against the share at hand (step 0: see `Plan.documents`).
        keys_out: rows of keys and values that go on to the next rank before the step is computed.
        keys_in: rows that come in meanwhile, for the step after.
        fresh: rows of the share's gradient that this step is the first to add to.
        gradients_out: rows of the share's gradient that go on after the step.
        gradients_in: rows that come in meanwhile; after the last step, those of this rank's own share.
    """

    blocks: tuple[Block, ...]
    keys_out: Ranges
    keys_in: Ranges
    fresh: Ranges
    gradients_out: Ranges
    gradients_in: Ranges


@dataclasses.dataclass(frozen=True)
class Plan:
    """One rank's whole turn around the ring.

    Attributes:
        documents: bounds of what it holds of each document, in local rows, 0 first and L last: step 0 attends
            within them, its queries to its own keys.
        steps: one for each rank.
    """

    documents: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def keys_travel(self) -> bool:
        """Whether this rank sends or receives keys and values."""
        return any(step.keys_out or step.keys_in for step in self.steps)

    @property
    def gradients_travel(self) -> bool:
        """Whether this rank sends or receives gradients; also where it is only on their way home."""
        return any(step.gradients_out or step.gradients_in for step in self.steps)


def local_documents(
    sequence_length: int, rank: int, cp_size: int, bounds: tuple[int, ...] | None
) -> list[LocalDocument]:
    """What `rank` holds of each document, in the order in which it holds it."""
    bounds = bounds or (0, sequence_length)
    found: list[LocalDocument] = []
    offset = 0
    for first, last in zigzag.spans(sequence_length, rank, cp_size):
        document = bisect.bisect_right(bounds, first) - 1
        while document + 1 < len(bounds) and bounds[document] < last:
            start = offset + max(bounds[document] - first, 0)
            stop = offset + min(bounds[document + 1], last) - first
            if found and found[-1].document == document:
                start = found.pop().start
            found.append(LocalDocument(document, start, stop))
            document += 1
        offset += last - first
    return found


def blocks(
    sequence_length: int,
    q_rank: int,
    k_rank: int,
    cp_size: int,
    bounds: tuple[int, ...] | None,
    causal: bool = True,
) -> list[Block]:
    """The rectangles that make the attention of `q_rank`'s queries over `k_rank`'s keys.

    Args:
        sequence_length: S, tokens of the whole packed sequence.
        bounds: [documents + 1] bounds over the whole sequence, as of `zigzag.document_bounds`; None: one document.
    """
    chunk = zigzag.chunk_length(sequence_length, cp_size)
    own = local_documents(sequence_length, q_rank, cp_size, bounds)
    if q_rank == k_rank:
        return [Block(piece.start, piece.stop, piece.start, piece.stop, causal) for piece in own]
    theirs = local_documents(sequence_length, k_rank, cp_size, bounds)
    return _between(own, theirs, q_rank, k_rank, chunk, causal)


def _between(
    queries: list[LocalDocument], keys: list[LocalDocument], q_rank: int, k_rank: int, chunk: int, causal: bool
) -> list[Block]:
    """Rectangles between two ranks' local_documents."""
    q_first, k_last = (chunk if causal and q_rank < k_rank else 0), (chunk if causal and k_rank < q_rank else 2 * chunk)
    wanted = {piece.document: piece for piece in queries if piece.stop > q_first}
    found = []
    for piece in keys:
        mine = wanted.get(piece.document)
        if mine is not None and piece.start < k_last:
            found.append(Block(max(mine.start, q_first), mine.stop, piece.start, min(piece.stop, k_last), causal=False))
    return found


@functools.lru_cache(maxsize=64)  # a model's layers ask for the same; a step has few microbatches
def plan(sequence_length: int, rank: int, cp_size: int, cu_seqlens: tuple[int, ...] | None, causal: bool) -> Plan:
    """A rank's turn around the ring; see `blocks` for the arguments.

    Costs cp^2 small steps, plus the documents of one share.

    Raises:
        UserError: cu_seqlens that fall, or do not span the sequence; a length that 2 cp does not divide.
    """
    bounds = None if cu_seqlens is None else zigzag.document_bounds(cu_seqlens, sequence_length)
    chunk = zigzag.chunk_length(sequence_length, cp_size)
    held = local_documents(sequence_length, rank, cp_size, bounds)
    documents = (0, *(piece.stop for piece in held))
    across = [_at_edges(local_documents(sequence_length, r, cp_size, bounds), chunk) for r in range(cp_size)]

    def share_blocks(share: int, step: int) -> list[Block]:
        holder = (share - step) % cp_size
        return _between(across[holder], across[share], holder, share, chunk, causal) if step else []

    needed, touched = {}, {}
    for share in range(cp_size):
        used = [_ranges(share_blocks(share, step)) for step in range(cp_size)]
        needed[share] = [_union(used[step + 1 :]) for step in range(cp_size)]
        touched[share] = [_union(used[: step + 1]) for step in range(cp_size)]
    steps = []
    for step in range(cp_size):
        share, following = (rank + step) % cp_size, (rank + step + 1) % cp_size
        before = touched[share][step - 1] if step else ()
        steps.append(
            Step(
                blocks=tuple(share_blocks(share, step)),
                keys_out=needed[share][step],
                keys_in=needed[following][step],
                fresh=_difference(touched[share][step], before),
                gradients_out=touched[share][step],
                gradients_in=touched[following][step],
            )
        )
    return Plan(documents, tuple(steps))


def _at_edges(found: list[LocalDocument], chunk: int) -> list[LocalDocument]:
    """The local_documents that may go on in another rank's share: those at the ends of either chunk."""
    return [
        piece
        for piece in found
        if piece.start % chunk == 0 or piece.stop % chunk == 0 or piece.start < chunk < piece.stop
    ]


def _ranges(found: list[Block]) -> list[tuple[int, int]]:
    return [(block.k_start, block.k_stop) for block in found]


def _union(lists: list[list[tuple[int, int]]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(piece for local_documents in lists for piece in local_documents):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return tuple(merged)


def _difference(whole: Ranges, part: Ranges) -> Ranges:
    """Rows of `whole` that `part`, a subset of it, leaves out."""
    left = []
    for start, stop in whole:
        for inner_start, inner_stop in part:
            if start <= inner_start and inner_stop <= stop:
                if start < inner_start:
                    left.append((start, inner_start))
                start = inner_stop
        if start < stop:
            left.append((start, stop))
    return tuple(left)
