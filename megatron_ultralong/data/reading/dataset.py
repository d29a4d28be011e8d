"""Samples from a packed index: tokens, labels, loss mask, positions and document bounds, read from mapped tokens.

A context-parallel rank asks for its own ranges of the sequence (`spans`) and only these tokens are read. With a
document mask the bounds of the whole sequence are needed on every rank; they come from the documents' lengths
alone. Shapes: S sequence length, n tokens in the spans, M documents.

Cost: of one range, each token is read once and written once (as int64), and tokens and labels are views of the same
buffer; of several ranges, tokens and labels are written apart, into one buffer. Positions and masks that are the same
for every sample are made once and handed out again, read-only. Finding a span walks over the lengths of the documents
before it in the sample. Nothing of size S x S exists.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.indexed_dataset import IndexedTokens
from megatron_ultralong.data.packing import _packing
from megatron_ultralong.data.packing.index import open_packed_index
from megatron_ultralong.data.packing.specification import UNLIMITED

Spans = Sequence[tuple[int, int]]
Ints = npt.NDArray[np.int64]
_PAD = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    """The asked-for part of one sample; the arrays are the spans' pieces one after the other.

    They may share memory with each other and with other samples: copy before writing into one.
    """

    tokens: Ints
    """int64 [n]."""
    labels: Ints
    """int64 [n]: the next token of each."""
    loss_mask: npt.NDArray[np.float32]
    """float32 [n]: 1 where the label counts."""
    position_ids: Ints
    """int64 [n]."""
    cu_seqlens: npt.NDArray[np.int32]
    """int32 [M + 1]: bounds of the documents of the whole sequence, padding included, whatever the spans are."""
    source: int = 0
    """Which of a blend's sources it is from."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a sample's documents lie among its S + 1 tokens; all places count from its first token."""

    starts: Ints
    """int64 [M + 1]: of each document, the first 0; then the end of the last one with its separator."""
    ends: Ints
    """int64 [M]: of each document; from there to the next start is separator."""

    def bounds(self, sequence_length: int) -> Ints:
        """int64: starts of documents in 0 .. S, that of the padding if there is any, and S."""
        inner = self.starts[: int(np.searchsorted(self.starts, sequence_length))]
        return np.append(inner, np.int64(sequence_length))

    def separators(self) -> Ints:
        """int64: places of all tokens of separators, ascending; also those behind the sample's last token."""
        counts = self.starts[1:] - self.ends
        within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.ends, counts) + within


class PackedDataset:
    """The samples of one packed index.

    Args:
        index: folder written by tools/pack_corpus.py.
        document_mask: False (the paper's way): positions run 0 .. S - 1 over the whole sample, which is one
            document to attention, and labels cross documents. True: positions restart at each document, of which
            the separator behind it is part, and the label that would be the next document's first token does not
            count. Padding never counts; with the mask it is a document of its own.
        loss_on_separators: whether labels that are part of a separator count. Of chats they never do.
        loss_on_first_tokens: whether a label that is a document's first token, predicted from the document or the
            separator before it, counts. With `document_mask` it never does.
        padded_length: positions that a sample is read as, so that ranks divide them; None: its own S. What lies
            behind S is padding: some token, no loss, positions from 0, and with the mask a document of its own.
        believed: see `open_packed_index`.

    Raises:
        UserError: the index or its tokens are missing, or the tokens are not those that were packed.
    """

    def __init__(
        self,
        index: Path,
        *,
        document_mask: bool = False,
        loss_on_separators: bool = True,
        loss_on_first_tokens: bool = True,
        padded_length: int | None = None,
        believed: str | None = None,
    ) -> None:
        self.index = open_packed_index(index, believed)
        manifest = self.index.manifest
        self.sequence_length: int = manifest["sequence_length"]
        self.padded_length = padded_length or self.sequence_length
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer_fingerprint: str = manifest["tokenizer_fingerprint"]
        self.fingerprint = self.index.fingerprint
        self.document_mask = document_mask
        self._skip_separators = not loss_on_separators and bool(manifest["separator"])
        self._skip_first_tokens = document_mask or not loss_on_first_tokens
        self._concatenated = manifest["packing"] == "concatenate"
        self._longest = UNLIMITED if self._concatenated else self.sequence_length + 1
        self._separator = np.array(manifest["separator"], dtype=np.int64)
        self._plain: tuple[Spans, Ints, npt.NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self.index.sample_index) - 1

    def __getitem__(self, i: int) -> Sample:
        """All of sample `i`."""
        return self.read(i)

    def read(self, i: int, spans: Spans | None = None) -> Sample:
        """Read sample `i`, or the parts of it that a rank holds.

        Args:
            i: 0 .. len - 1.
            spans: half-open ranges of positions of the sequence; None for all of it.

        Raises:
            IndexError: no such sample.
            ValueError: a span outside 0 .. S, or of the padding behind it.
        """
        spans = [(0, self.padded_length)] if spans is None else list(spans)
        if any(not 0 <= begin < end <= self.padded_length for begin, end in spans):
            raise ValueError(f"spans: {spans} do not lie in 0..{self.padded_length}")
        spans = _merged(spans)
        tokens, labels, layout = self._tokens(i, spans)
        bounds = self._bounds(layout) if self.document_mask else np.array([0, self.padded_length])
        return Sample(
            tokens=tokens,
            labels=labels,
            loss_mask=self._loss_mask(i, spans, layout),
            position_ids=_packing.positions(bounds, spans) if self.document_mask else self._unmasked(spans)[1],
            cu_seqlens=bounds.astype(np.int32),
        )

    def layout(self, i: int) -> Layout:
        """Where the documents of sample `i` lie; no token is read."""
        return self._gather(i, self.index.corpus.tokens, self._separator, [(0, 0)], self.sequence_length + 1)[1]

    def documents(self, i: int) -> Ints:
        """int64 [M]: ids in the corpus of the documents of sample `i`."""
        position, _, last = self._place(i)
        count = len(self.layout(i).ends)
        if len(self._separator) == 0:  # empty documents have no token, and no separator either
            lengths = self.index.corpus.tokens.lengths
            here = self.index.document_ids[position:last]
            return np.fromiter(
                itertools.islice((d for d in here if lengths[d] > 0), count), dtype=np.int64, count=count
            )
        return np.array(self.index.document_ids[position : position + count])

    def _bounds(self, layout: Layout) -> Ints:
        bounds = layout.bounds(self.sequence_length)
        return bounds if self.padded_length == self.sequence_length else np.append(bounds, self.padded_length)

    def _place(self, i: int) -> tuple[int, int, int]:
        """Where a sample begins in the stream of documents, and where that stream ends (see packing.py)."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        row = self.index.sample_index[i]
        if self._concatenated:
            return int(row[0]), int(row[1]), len(self.index.document_ids)
        return int(row), 0, int(self.index.sample_index[i + 1])

    def _tokens(self, i: int, spans: Spans) -> tuple[Ints, Ints, Layout]:
        """Tokens and labels of the spans: views of one buffer."""
        if len(spans) == 1:
            ((begin, end),) = spans
            flat, layout = self._gather(i, self.index.corpus.tokens, self._separator, [(begin, end + 1)])
            return flat[:-1], flat[1:], layout
        both = [*spans, *((begin + 1, end + 1) for begin, end in spans)]
        flat, layout = self._gather(i, self.index.corpus.tokens, self._separator, both)
        return flat[: len(flat) // 2], flat[len(flat) // 2 :], layout

    def _gather(
        self, i: int, source: IndexedTokens, separator: Ints, spans: Spans, count: int | None = None
    ) -> tuple[Ints, Layout]:
        if count is None:  # what the mask needs of the documents behind the last span
            whole = self.document_mask or self._skip_first_tokens or self._skip_separators or self._may_end(i)
            count = self.sequence_length + 1 if whole else 0
        flat, starts, ends = _packing.gather(
            source.tokens,
            source.offsets,
            source.lengths,
            self.index.document_ids,
            separator,
            _PAD,
            *self._place(i),
            self._longest,
            count,
            spans,
        )
        return flat, Layout(starts, ends)

    def _may_end(self, i: int) -> bool:
        """Whether there can be padding in sample i."""
        return not self._concatenated or i == len(self) - 1

    def _unmasked(self, spans: Spans) -> tuple[Spans, Ints, npt.NDArray[np.float32]]:
        """Positions without a document mask, and the mask of a sample whose every label counts; made once."""
        if self._plain is None or self._plain[0] != spans:
            ids = _packing.positions(np.array([0, self.sequence_length], dtype=np.int64), spans)
            ones = np.ones(len(ids), dtype=np.float32)
            for piece, (begin, _) in zip(_split(ones, spans), spans, strict=True):
                piece[max(self.sequence_length - begin, 0) :] = 0
            for array in (ids, ones):
                array.flags.writeable = False
            self._plain = (spans, ids, ones)
        return self._plain

    def _loss_mask(self, i: int, spans: Spans, layout: Layout) -> npt.NDArray[np.float32]:
        """Which labels count: position t's is token t + 1."""
        responses = self.index.corpus.loss_mask
        places = self._uncounted(i, layout)
        if responses is None and places is None:
            return self._unmasked(spans)[2]
        labels = [(begin + 1, end + 1) for begin, end in spans]
        if responses is None:
            mask = np.ones(sum(end - begin for begin, end in spans), dtype=np.float32)
        else:
            mask = self._gather(i, responses, np.zeros_like(self._separator), labels)[0].astype(np.float32)
        for piece, (begin, end) in zip(_split(mask, labels), labels, strict=True):
            if places is not None:
                inside = places[(places >= begin) & (places < end)]
                piece[inside - begin] = 0
            real = self.sequence_length + 1
            if self._may_end(i):
                real = min(real, int(layout.starts[-1]))
            piece[max(real - begin, 0) :] = 0
        return mask

    def _uncounted(self, i: int, layout: Layout) -> Ints | None:
        """Places of tokens that do not count as labels, padding aside; None if all others count."""
        padded = self._may_end(i) and layout.starts[-1] <= self.sequence_length
        places = [np.zeros(0, dtype=np.int64)]
        if self._skip_first_tokens:
            places.append(layout.starts[1:])
        if self._skip_separators:
            places.append(layout.separators())
        return np.concatenate(places) if len(places) > 1 or padded else None


def _merged(spans: Spans) -> list[tuple[int, int]]:
    """The spans, each that begins where the one before it ends joined to that one."""
    merged: list[tuple[int, int]] = []
    for begin, end in spans:
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return merged


def _split(flat: npt.NDArray, spans: Spans) -> list[npt.NDArray]:
    """Views of the spans' pieces of an array that holds them one after the other."""
    ends = np.cumsum([end - begin for begin, end in spans]).tolist()
    return [flat[last - (end - begin) : last] for last, (begin, end) in zip(ends, spans, strict=True)]
