"""One pass over the tokens of others: every id against the vocabulary, and the ids that begin and end documents.

Cost: each byte is read once, in order; memory is a block of 2^22 tokens and the last id of each document.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.adopting.foreign_files import Ints
from megatron_ultralong.data.corpus.adopted import AdoptedFile
from megatron_ultralong.errors import UserError
from megatron_ultralong.progress import Progress

_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Scan:
    """What the pass found."""

    lasts: npt.NDArray[Any]
    """The last id of each document, of the file's dtype; 0 of one without a token."""
    first_counts: Ints
    """int64 [vocabulary]: how many documents begin with each id."""


@dataclasses.dataclass
class ScannedFile:
    """What is known of one file after its pass."""

    file: AdoptedFile
    source: str
    dtype: np.dtype[Any]
    starts: npt.NDArray[np.int64]
    """int64 [documents]: the token at which each begins."""
    lengths: npt.NDArray[Any]
    """Integers [documents]: their tokens."""
    lasts: npt.NDArray[Any]
    """Integers [documents]: see `Scan`."""


def scan(
    path: Path, tokens: npt.NDArray[Any], bounds: Ints, vocab_size: int, tokenizer: Path, progress: Progress
) -> Scan:
    """Read a file of tokens through.

    Args:
        path: of the file, for messages.
        tokens: integers [n], all of it.
        bounds: int64 [documents + 1], where documents begin (see `foreign_files.Documents`).
        vocab_size: ids of the tokenizer.
        tokenizer: its path, for messages.
        progress: counts bytes.

    Raises:
        UserError: an id is not in the vocabulary.
    """
    lasts = np.zeros(len(bounds) - 1, dtype=tokens.dtype)
    first_counts = np.zeros(vocab_size, dtype=np.int64)
    filled = np.diff(bounds) > 0
    for begin in range(0, len(tokens), _BLOCK):
        block = np.array(tokens[begin : begin + _BLOCK])
        end = begin + len(block)
        if int(block.min()) < 0 or int(block.max()) >= vocab_size:
            at = int(np.flatnonzero((block < 0) | (block >= vocab_size))[0])
            document = int(np.searchsorted(bounds, begin + at, side="right")) - 1
            raise UserError(
                f"{path}: document {document} has the id {block[at]} at its token {begin + at - bounds[document]}, and "
                f"{tokenizer} has {vocab_size} ids; name the tokenizer that made the tokens."
            )
        first, last = np.searchsorted(bounds[1:], [begin, end], side="right")
        lasts[first:last] = block[bounds[first + 1 : last + 1] - 1 - begin]
        first, last = np.searchsorted(bounds[:-1], [begin, end], side="left")
        beginnings = block[bounds[first:last][filled[first:last]] - begin]
        first_counts += np.bincount(beginnings, minlength=vocab_size)
        progress.advance(block.nbytes)
    lasts[~filled] = 0
    return Scan(lasts, first_counts)
