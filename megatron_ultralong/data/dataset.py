"""Samples from a packed index: tokens, labels, loss mask, positions and document bounds, read from mapped tokens.

A context-parallel rank asks for its own ranges of the sequence (`spans`) and only these tokens are read. With a
document mask the bounds of the whole sequence are needed on every rank; they come from the documents' lengths
alone. Shapes: S sequence length, n tokens in the spans, M documents.

Cost: each token asked for is read once and written once (as int64); finding a span walks over the lengths of the
documents before it in the sample. Nothing of size S x S exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data import _packing
from megatron_ultralong.data.indexed import IndexedTokens
from megatron_ultralong.data.packed_index import open_packed_index
from megatron_ultralong.data.packing import UNLIMITED

Spans = Sequence[tuple[int, int]]
_PAD = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    """The asked-for part of one sample; the arrays are the spans' pieces one after the other."""

    tokens: npt.NDArray[np.int64]
    """int64 [n]."""
    labels: npt.NDArray[np.int64]
    """int64 [n]: the next token of each."""
    loss_mask: npt.NDArray[np.float32]
    """float32 [n]: 1 where the label counts."""
    position_ids: npt.NDArray[np.int64]
    """int64 [n]."""
    cu_seqlens: npt.NDArray[np.int32]
    """int32 [M + 1]: bounds of the documents of the whole sequence, 0 .. S, whatever the spans are."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a sample begins in the stream of documents, and where that stream ends (see packing.py)."""

    position: int
    offset: int
    last: int


class PackedDataset:
    """The samples of one packed index.

    Args:
        index: folder written by tools/pack_corpus.py.
        document_mask: False (the paper's way): positions run 0 .. S - 1 over the whole sample, which is one
            document to attention, and labels cross documents. True: positions restart at each document, of which
            the separator behind it is part, and the label that would be the next document's first token does not
            count. Padding never counts; with the mask it is a document of its own.

    Raises:
        UserError: the index or its tokens are missing, or the tokens are not those that were packed.
    """

    def __init__(self, index: Path, *, document_mask: bool = False) -> None:
        self._index = open_packed_index(index)
        manifest = self._index.manifest
        self.sequence_length: int = manifest["sequence_length"]
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer_fingerprint: str = manifest["tokenizer_fingerprint"]
        self.fingerprint = self._index.fingerprint
        self._document_mask = document_mask
        self._concatenated = manifest["packing"] == "concatenate"
        self._longest = UNLIMITED if self._concatenated else self.sequence_length + 1
        self._separator = np.array(manifest["separator"], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._index.sample_index) - 1

    def read(self, i: int, spans: Spans | None = None) -> Sample:
        """Read sample `i`, or the parts of it that a rank holds.

        Args:
            i: 0 .. len - 1.
            spans: half-open ranges of positions of the sequence; None for all of it.

        Raises:
            IndexError: no such sample.
            ValueError: a span outside 0 .. S.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        spans = [(0, self.sequence_length)] if spans is None else list(spans)
        if any(not 0 <= begin < end <= self.sequence_length for begin, end in spans):
            raise ValueError(f"spans: {spans} do not lie in 0..{self.sequence_length}")
        place = self._place(i)
        starts, padding = self._starts(place)
        inner = starts[starts < self.sequence_length] if self._document_mask else starts[:1]
        bounds = np.append(inner, np.int64(self.sequence_length))
        tokens, labels = self._gather(place, spans)
        return Sample(
            tokens=tokens,
            labels=labels,
            loss_mask=self._loss_mask(place, spans, starts, padding),
            position_ids=_positions(bounds, spans),
            cu_seqlens=bounds.astype(np.int32),
        )

    def _place(self, i: int) -> _Place:
        row = self._index.sample_index[i]
        if self._concatenated:
            return _Place(int(row[0]), int(row[1]), len(self._index.document_ids))
        return _Place(int(row), 0, int(self._index.sample_index[i + 1]))

    def _starts(self, place: _Place) -> tuple[npt.NDArray[np.int64], int]:
        """Starts of documents (and of the padding) in 0 .. S, and where the padding begins (S + 1: nowhere)."""
        count = self.sequence_length + 1
        if self._concatenated and not self._document_mask:
            return np.zeros(1, dtype=np.int64), count
        lengths, ids = self._index.corpus.tokens.lengths, self._index.document_ids
        place_arguments = (place.position, place.offset, place.last, self._longest)
        starts = _packing.document_starts(lengths, ids, len(self._separator), *place_arguments, count)
        if self._concatenated:
            return starts, count
        used = int(np.minimum(lengths[ids[place.position : place.last]], self._longest).sum(dtype=np.int64))
        return starts, used

    def _gather(self, place: _Place, spans: Spans) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        flat = self._read(self._index.corpus.tokens, self._separator, place, [(a, b + 1) for a, b in spans])
        ends = np.cumsum([b - a + 1 for a, b in spans])
        pieces = [flat[end - (b - a + 1) : end] for end, (a, b) in zip(ends.tolist(), spans, strict=True)]
        return _join([piece[:-1] for piece in pieces]), _join([piece[1:] for piece in pieces])

    def _read(
        self, source: IndexedTokens, separator: npt.NDArray[np.int64], place: _Place, spans: Spans
    ) -> npt.NDArray[np.int64]:
        return _packing.gather(
            source.tokens,
            source.offsets,
            source.lengths,
            self._index.document_ids,
            separator,
            _PAD,
            place.position,
            place.offset,
            place.last,
            self._longest,
            spans,
        )

    def _loss_mask(
        self, place: _Place, spans: Spans, starts: npt.NDArray[np.int64], padding: int
    ) -> npt.NDArray[np.float32]:
        responses = self._index.corpus.loss_mask
        labels = [(begin + 1, end + 1) for begin, end in spans]
        if responses is None:
            mask = np.ones(sum(end - begin for begin, end in spans), dtype=np.float32)
        else:
            mask = self._read(responses, np.zeros_like(self._separator), place, labels).astype(np.float32)
        first = 0
        for begin, end in labels:
            piece = mask[first : first + end - begin]
            if self._document_mask:
                piece[starts[(starts >= max(begin, 1)) & (starts < end)] - begin] = 0
            if padding < end:
                piece[max(padding - begin, 0) :] = 0
            first += end - begin
        return mask


def _join(pieces: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _positions(bounds: npt.NDArray[np.int64], spans: Spans) -> npt.NDArray[np.int64]:
    """Positions that restart at each bound, of the spans only."""
    pieces = []
    for begin, end in spans:
        clipped = np.clip(bounds, begin, end)
        starts = np.repeat(bounds[:-1], clipped[1:] - clipped[:-1])
        pieces.append(np.arange(begin, end, dtype=np.int64) - starts)
    return _join(pieces)
