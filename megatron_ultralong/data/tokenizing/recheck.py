"""A share of what gigatoken made, encoded once more by the reference: one text in 1,000, and the first of each shard.

A worker keeps such texts beside its part, with their ids; the run's own process, which has the reference and waits
meanwhile, compares them before the part counts. Which texts depends on the input alone. Of a text over 4,096
characters it is the beginning, encoded apart. Cost: a thousandth of the text, by an encoder 20 to 100 times slower.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.tokenizer.encoders import EncodedBatch, Encoder, as_strings
from megatron_ultralong.errors import UserError

EVERY = 1000
LONGEST = 1 << 12
_FILE = "recheck.json"


class DifferenceError(UserError):
    """gigatoken gave other ids than the reference."""


class Samples:
    """The texts of one shard that are to be encoded again."""

    def __init__(self) -> None:
        self._seen = 0
        self._kept: list[tuple[int, int | None, str, list[int]]] = []

    def add(self, fast: Encoder, texts: Sequence[str | bytes], encoded: EncodedBatch, where: Sequence[Any]) -> None:
        """Keep some of a batch.

        Args:
            fast: what encoded it.
            texts: documents, or pieces of long ones.
            encoded: their ids.
            where: the number of the shard's piece, and the line or row of each text, if it has one.
        """
        ids, lengths = encoded
        number, rows = where
        for i in range(-self._seen % EVERY, len(texts), EVERY):
            text = texts[i]
            if len(text) > LONGEST:
                (beginning,) = as_strings([text[:LONGEST]]) if isinstance(text, str) else [_whole(text[:LONGEST])]
                own = fast.encode_batch([beginning])[0]
            else:
                (beginning,), end = as_strings([text]), int(lengths[: i + 1].sum())
                own = ids[end - int(lengths[i]) : end]
            self._kept.append((number, rows[i] if rows else None, beginning, own.tolist()))
        self._seen += len(texts)

    def write(self, folder: Path) -> None:
        """Put them beside a part."""
        if self._kept:
            (folder / _FILE).write_text(json.dumps(self._kept), encoding="utf-8")


def _whole(text: bytes) -> str:
    """UTF-8 without the character that its end cuts."""
    return text.decode(errors="ignore")


def recheck(folder: Path, reference: Encoder, place: Callable[[int, int | None], str], threads: int) -> None:
    """Compare the texts beside a part with what the reference makes of them, and remove them.

    Args:
        folder: of the part.
        reference: the encoder whose ids are the definition.
        place: what to call a line or row of a piece of the shard.
        threads: to encode on.

    Raises:
        DifferenceError: a text has other ids; it is named.
    """
    path = folder / _FILE
    if not path.exists():
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    ids, lengths = reference.encode_batch([text for _, _, text, _ in kept], threads)
    for (number, row, text, own), theirs in zip(kept, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        if own != theirs.tolist():
            pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(own, theirs, strict=False))
            same = sum(1 for _ in pairs)
            raise DifferenceError(
                f"{place(number, row)}: gigatoken gives other ids than the tokenizer's own library, from token {same} "
                f"on (the text begins {text[:40]!r}); run again with --encoder reference, which is slower. The shards "
                "that gigatoken had made of this corpus are removed."
            )
    path.unlink()
