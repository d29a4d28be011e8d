"""Documents that are kept from training, the same ones for every list of a corpus."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.corpus import Corpus
from megatron_ultralong.data.resampling.listing import Documents
from megatron_ultralong.errors import UserError

Ints = npt.NDArray[np.int64]


def hold_out(
    corpus: Corpus, documents: Documents | None, share: float, part: Literal["rest", "held-out"]
) -> Documents | None:
    """A list without a share of its documents, or those alone, each once: two lists that have none in common.

    A document is held out by a hash of its number, so the same ones are for every list of a corpus. Copies of a text
    under other numbers are not seen: deduplicate before.

    Args:
        corpus: what is packed.
        documents: the list; None: every document once.
        share: of the documents, below 1; with 0 the rest is the list as it is.
        part: which of the two.

    Raises:
        UserError: the share is out of range, or the part is empty.
    """
    if share == 0 and part == "rest":
        return documents
    if not 0 < share < 1:
        raise UserError(f"held_out: {share} is no share of the documents; give a number between 0 and 1.")
    ids = np.arange(len(corpus.tokens), dtype=np.int64) if documents is None else documents.ids
    held = _mixed(ids) < np.uint64(share * 2.0**64)
    chosen = np.unique(ids[held]) if part == "held-out" else ids[~held]
    if not len(chosen):
        raise UserError(f"held_out: share {share} of {len(corpus.tokens)} documents leaves none in a part; change it.")
    made_by = {} if documents is None else documents.made_by
    return Documents(chosen, {**made_by, "held_out": share, "part": part})


def _mixed(ids: Ints) -> npt.NDArray[np.uint64]:
    """Numbers to hashes: splitmix64 (Steele et al. 2014), which spreads neighbours over all of 64 bits."""
    x = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
