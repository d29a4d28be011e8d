"""Text to ids in any process: the reference of each kind of tokenizer, and gigatoken, which must give the same ids.

A `Recipe` is all that a worker process needs; building an encoder from one imports neither torch nor transformers.

`gigatoken` keeps every distinct word it has met and never forgets one, so over a large corpus it grows without bound
(2 to 3 GB after 300 MB of random words). `GigatokenEncoder` builds it anew, 0.05 s, whenever the process has grown by
`_GROWTH` for each of its threads; the ids do not depend on it. Each thread has one of its own: gigatoken's own threads
share the work of short batches so badly that two do less than one.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizer.cut_places import find_cuts
from megatron_ultralong.data.tokenizer.cutting import PIECE, Cuts

EncodedBatch = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
"""Ids of several texts one after the other, uint32 [n], and the number of ids of each, int64 [texts]."""

Texts = Sequence[str | bytes]
"""All as strings, or all as UTF-8."""

_GROWTH = 128 << 20


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an encoder is built from."""

    kind: Literal["huggingface", "sentencepiece", "bytes"]
    """Whose reference gives the ids."""
    model: bytes | Path
    """The contents of a tokenizer.json or of a sentencepiece model, or the file that has them (a new process reads it
    sooner than a long message); nothing for bytes."""
    split_special: bool = False
    """Whether text that spells a special token is text like any other; tokenizer.json has no place for it."""

    def content(self) -> bytes:
        """The contents."""
        return self.model.read_bytes() if isinstance(self.model, Path) else self.model


class Encoder(Protocol):
    """Text to ids."""

    vocab_size: int
    """One more than the largest id, added tokens included."""
    cuts: Cuts | None
    """Where a text may be cut without changing its ids; None: nowhere."""

    def encode_batch(self, texts: Texts, threads: int = 1) -> EncodedBatch:
        """Ids of several texts, without special tokens added, on so many threads (at most RAYON_NUM_THREADS)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        ...


def reference_encoder(recipe: Recipe) -> Encoder:
    """The encoder whose ids are the definition."""
    if recipe.kind == "huggingface":
        return HuggingFaceEncoder(recipe.content(), recipe.split_special)
    return SentencePieceEncoder(recipe.content()) if recipe.kind == "sentencepiece" else BytesEncoder()


class HuggingFaceEncoder:
    """`tokenizers`, from the contents of a tokenizer.json."""

    def __init__(self, model: bytes, split_special: bool = False) -> None:
        import tokenizers

        self._rust = tokenizers.Tokenizer.from_buffer(model)
        self._rust.no_truncation()
        self._rust.no_padding()
        self._rust.encode_special_tokens = split_special
        self.vocab_size = 1 + max(self._rust.get_vocab(with_added_tokens=True).values())
        self.cuts = find_cuts(json.loads(model))

    def encode_batch(self, texts: Texts, threads: int = 1) -> EncodedBatch:
        """See `Encoder`."""
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        rows = [encoding.ids for encoding in self._rust.encode_batch_fast(as_strings(texts), add_special_tokens=False)]
        return _flatten(rows)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Encoder`."""
        return str(self._rust.decode(list(ids), skip_special_tokens=False))


class SentencePieceEncoder:
    """`sentencepiece`, from the contents of a .model file."""

    cuts: Cuts | None = None  # it normalises white space across any cut

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = int(self._processor.vocab_size())

    def encode_batch(self, texts: Texts, threads: int = 1) -> EncodedBatch:
        """See `Encoder`."""
        return _flatten(self._processor.encode(as_strings(texts), num_threads=threads))

    def decode(self, ids: Sequence[int]) -> str:
        """See `Encoder`."""
        return str(self._processor.decode(list(ids)))


class BytesEncoder:
    """Each byte of UTF-8 is its own id; needs no file."""

    vocab_size = 256
    cuts: Cuts | None = Cuts(re.compile("(?s)."))

    def encode_batch(self, texts: Texts, threads: int = 1) -> EncodedBatch:
        """See `Encoder`."""
        encoded = [text.encode() if isinstance(text, str) else text for text in texts]
        ids = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.uint32)
        return ids, np.array([len(piece) for piece in encoded], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Encoder`."""
        return bytes(ids).decode(errors="replace")


class GigatokenEncoder:
    """gigatoken, one for each thread, all built anew whenever the process has grown too much.

    Raises:
        Exception: of several types, where gigatoken refuses the tokenizer.
    """

    def __init__(self, recipe: Recipe) -> None:
        if recipe.kind == "bytes":
            raise ValueError("bytes need no tokenizer")
        if recipe.split_special:
            raise ValueError("it cannot split special tokens, as split_special_tokens asks")
        self._recipe = recipe
        self.cuts = find_cuts(json.loads(recipe.content())) if recipe.kind == "huggingface" else None
        self._fast: list[Any] = []
        self._build(1)
        self.vocab_size = int(self._fast[0].vocab_size)

    def _build(self, count: int) -> None:
        """Add what is missing to `count`."""
        import gigatoken

        for _ in range(len(self._fast), count):
            model = self._recipe.content()
            if self._recipe.kind == "huggingface":
                self._fast.append(gigatoken.Tokenizer.from_json(model))
            else:
                self._fast.append(gigatoken.Tokenizer.from_sentencepiece(model))
            self._limit = _resident() + len(self._fast) * _GROWTH

    def encode_batch(self, texts: Texts, threads: int = 1) -> EncodedBatch:
        """See `Encoder`."""
        batches: list[EncodedBatch] = []
        portions = _portions(texts)
        while some := list(itertools.islice(portions, threads)):
            if _resident() > self._limit:
                self._fast.clear()  # the old ones must go before the new ones come
                _return_memory()
            self._build(len(some))
            if len(some) == 1:
                batches.append(_encode(self._fast[0], some[0], threads > 1))
            else:
                batches += _threads(threads).map(_encode, self._fast, some)
        ids, lengths = zip(*batches, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Encoder`."""
        text: bytes = self._fast[0].decode(list(ids))
        return text.decode(errors="replace")


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def _encode(fast: Any, texts: Texts, parallel: bool = False) -> EncodedBatch:
    """Ids of some texts by one gigatoken, whose own threads are used only where one text cannot be shared out."""
    import awkward  # type: ignore[import-untyped]  # what gigatoken returns

    rows = fast.encode_batch(texts, parallel=parallel and len(texts) == 1 and len(texts[0]) > 2 * PIECE)
    return (
        awkward.to_numpy(awkward.flatten(rows)).astype(np.uint32, copy=False),
        awkward.to_numpy(awkward.num(rows)).astype(np.int64, copy=False),
    )


def _portions(texts: Texts) -> Iterator[Texts]:
    """The texts in lists of about a million characters: between them gigatoken can be built anew."""
    start, size = 0, 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= PIECE:
            yield list(texts[start : i + 1])
            start, size = i + 1, 0
    if start < len(texts) or not texts:
        yield list(texts[start:])


def _return_memory() -> None:
    """Give freed memory back to the system, without which the process stays as large as it was; glibc only."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    """Bytes of memory this process has now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def as_strings(texts: Texts) -> list[str]:
    """The texts decoded."""
    return [text if isinstance(text, str) else text.decode() for text in texts]


def _flatten(rows: Sequence[Sequence[int]]) -> EncodedBatch:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.fromiter((i for row in rows for i in row), dtype=np.uint32, count=int(lengths.sum())), lengths
