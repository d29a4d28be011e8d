"""Text to ids in any process: the reference of each kind of tokenizer, and gigatoken, which must give the same ids.

A `Recipe` is all that a worker process needs; building an encoder from one imports neither torch nor transformers.

`gigatoken` keeps every distinct word it has met and never forgets one, so over a large corpus it grows without bound
(2 to 3 GB after 300 MB of random words). `GigatokenEncoder` builds it anew, 0.05 to 0.5 s, whenever the process has
grown by `_GROWTH`; the ids do not depend on it.

Where a text may be cut without changing its ids (`is_cuttable`), a long one is cut at "letter| letter" and encoded in
pieces. For the split patterns listed here that is exact: no token of theirs holds a letter followed by a space, none
looks back, and the only one that looks ahead begins with white space. So a token ends before such a space, whatever
follows, and the rest is split as if it stood alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Batch = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
"""Ids of several texts one after the other, uint32 [n], and the number of ids of each, int64 [texts]."""

PIECE = 1 << 20
"""Characters of a piece of a long text."""

_GROWTH = 64 << 20
_CUTTABLE_SPLITS = {  # Llama 3, Qwen 2, GPT-2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an encoder is built from."""

    kind: Literal["huggingface", "sentencepiece", "bytes"]
    """Whose reference gives the ids."""
    model: bytes | Path
    """The contents of a tokenizer.json or of a sentencepiece model, or the file that has them (a new process reads it
    sooner than a long message); nothing for bytes."""

    def content(self) -> bytes:
        """The contents."""
        return self.model.read_bytes() if isinstance(self.model, Path) else self.model


class Encoder(Protocol):
    """Text to ids."""

    vocab_size: int
    """One more than the largest id, added tokens included."""
    cuttable: bool
    """Whether ids stay the same when a text is cut by `pieces`."""

    def encode_batch(self, texts: Sequence[str], parallel: bool = True) -> Batch:
        """Ids of several texts, without special tokens added; `parallel`: on all cores of RAYON_NUM_THREADS."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        ...


def reference_encoder(recipe: Recipe) -> Encoder:
    """The encoder whose ids are the definition."""
    if recipe.kind == "huggingface":
        return HuggingFaceEncoder(recipe.content())
    return SentencePieceEncoder(recipe.content()) if recipe.kind == "sentencepiece" else BytesEncoder()


class HuggingFaceEncoder:
    """`tokenizers`, from the contents of a tokenizer.json."""

    def __init__(self, model: bytes) -> None:
        import tokenizers

        self._rust = tokenizers.Tokenizer.from_buffer(model)
        self._rust.no_truncation()
        self._rust.no_padding()
        self.vocab_size = 1 + max(self._rust.get_vocab(with_added_tokens=True).values())
        self.cuttable = is_cuttable(json.loads(model))

    def encode_batch(self, texts: Sequence[str], parallel: bool = True) -> Batch:
        """See `Encoder`."""
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if parallel else "false"
        rows = [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]
        return _flatten(rows)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Encoder`."""
        return str(self._rust.decode(list(ids), skip_special_tokens=False))


class SentencePieceEncoder:
    """`sentencepiece`, from the contents of a .model file."""

    cuttable = False  # it normalises white space across any cut

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = int(self._processor.vocab_size())

    def encode_batch(self, texts: Sequence[str], parallel: bool = True) -> Batch:
        """See `Encoder`."""
        threads = int(os.environ.get("RAYON_NUM_THREADS", os.cpu_count() or 1)) if parallel else 1
        return _flatten(self._processor.encode(list(texts), num_threads=threads))

    def decode(self, ids: Sequence[int]) -> str:
        """See `Encoder`."""
        return str(self._processor.decode(list(ids)))


class BytesEncoder:
    """Each byte of UTF-8 is its own id; needs no file."""

    vocab_size = 256
    cuttable = True

    def encode_batch(self, texts: Sequence[str], parallel: bool = True) -> Batch:
        """See `Encoder`."""
        encoded = [text.encode() for text in texts]
        ids = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.uint32)
        return ids, np.array([len(piece) for piece in encoded], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Encoder`."""
        return bytes(ids).decode(errors="replace")


class GigatokenEncoder:
    """gigatoken, which never forgets a word: built anew whenever the process has grown too much.

    Raises:
        Exception: of several types, where gigatoken refuses the tokenizer.
    """

    def __init__(self, recipe: Recipe) -> None:
        if recipe.kind == "bytes":
            raise ValueError("bytes need no tokenizer")
        self._recipe = recipe
        self.cuttable = recipe.kind == "huggingface" and is_cuttable(json.loads(recipe.content()))
        self._build()
        self.vocab_size = int(self._fast.vocab_size)

    def _build(self) -> None:
        import gigatoken

        self._fast: Any = None  # the old one must go before the new one comes
        model = self._recipe.content()
        if self._recipe.kind == "huggingface":
            self._fast = gigatoken.Tokenizer.from_json(model)
        else:
            self._fast = gigatoken.Tokenizer.from_sentencepiece(model)
        self._limit = _resident() + _GROWTH

    def encode_batch(self, texts: Sequence[str], parallel: bool = True) -> Batch:
        """See `Encoder`."""
        import awkward  # type: ignore[import-untyped]  # what gigatoken returns

        ids, lengths = [], []
        for some in _portions(texts):
            if _resident() > self._limit:
                self._build()
            rows = self._fast.encode_batch(some, parallel=parallel)
            ids.append(awkward.to_numpy(awkward.flatten(rows)).astype(np.uint32, copy=False))
            lengths.append(awkward.to_numpy(awkward.num(rows)).astype(np.int64, copy=False))
        return np.concatenate(ids), np.concatenate(lengths)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Encoder`."""
        text: bytes = self._fast.decode(list(ids))
        return text.decode(errors="replace")


def _portions(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in lists of about a million characters: between them gigatoken can be built anew."""
    start, size = 0, 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= PIECE:
            yield list(texts[start : i + 1])
            start, size = i + 1, 0
    if start < len(texts) or not texts:
        yield list(texts[start:])


def _resident() -> int:
    """Bytes of memory this process has now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def _flatten(rows: Sequence[Sequence[int]]) -> Batch:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.fromiter((i for row in rows for i in row), dtype=np.uint32, count=int(lengths.sum())), lengths


def is_cuttable(tokenizer: dict[str, Any]) -> bool:
    """Whether `pieces` leaves the ids of this tokenizer.json as they are (the argument is in the module's docstring).

    A known split, no normalizer but NFC (which acts on neither letters before nor spaces after the cut), and no added
    token that could lie across a cut.
    """
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    splits = [step.get("pattern", {}).get("Regex") for step in steps if step.get("type") == "Split"]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if len(levels) != 1 or levels[0].get("add_prefix_space") or len(splits) + 1 != len(steps):
        return False
    known = [split in _CUTTABLE_SPLITS for split in splits] or [bool(levels[0].get("use_regex", True))]
    normalizer = tokenizer.get("normalizer")
    return (
        known == [True]
        and bool(not splits or not levels[0].get("use_regex", True))
        and (normalizer is None or normalizer.get("type") == "NFC")
        and not any(token["rstrip"] or next_cut(token["content"], 0) for token in tokenizer.get("added_tokens", []))
    )


def next_cut(text: str, start: int) -> int:
    """First place after `start` where a cuttable text may be cut, or 0."""
    place = text.find(" ", start + 1)
    while place > 0:
        if _is_letter(text[place - 1]) and _is_letter(text[place + 1 : place + 2]):
            return place
        place = text.find(" ", place + 1)
    return 0


def last_cut(text: str) -> int:
    """Last place where a cuttable text may be cut, or 0."""
    place = text.rfind(" ", 1, max(len(text) - 1, 1))
    while place > 0:
        if _is_letter(text[place - 1]) and _is_letter(text[place + 1]):
            return place
        place = text.rfind(" ", 1, place)
    return 0


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """The text in pieces of at least `size` characters, cut where that is exact; whole where there is no such place."""
    start = 0
    while len(text) - start > size and (cut := next_cut(text, start + size)):
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text
