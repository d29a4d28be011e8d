"""The special tokens that end and begin documents of others: found, and those that end them dropped by choice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.adopting.token_scan import ScannedFile
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

EndIds = Literal["auto", "drop", "keep"]
NEARLY_ALL = 0.99
"""Share of the documents from which on a special token that ends them is taken for the end of a document."""


def named_end(tokenizer: Tokenizer, text: str) -> int | None:
    """The id that a number or a token's text means; None of "".

    Raises:
        UserError: the tokenizer has no such id, or the text is not one token.
    """
    if not text:
        return None
    ids = [int(text)] if text.isdecimal() else tokenizer.encode(text)
    if len(ids) != 1 or ids[0] >= tokenizer.vocab_size:
        raise UserError(f"--end-id {text}: is no id or token of {tokenizer.path}; give one, such as its eos_token.")
    return ids[0]


def drop_ends(
    adopted: Sequence[ScannedFile], tokenizer: Tokenizer, how: EndIds, named: int | None
) -> list[dict[str, Any]]:
    """Shorten the documents of each file whose end id is dropped, and say what ends how many documents.

    Args:
        adopted: all files; `lengths` are changed.
        tokenizer: that made them.
        how: "auto": dropped in a file of which `NEARLY_ALL` documents end with it.
        named: the id (see `named_end`); None: the special token that ends most documents of a file.

    Returns:
        For the manifest: of each id and what becomes of it, files, documents, and documents that end with it.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    without = 0
    for each in adopted:
        filled = each.lengths > 0
        counts = np.bincount(each.lasts[filled], minlength=tokenizer.vocab_size)
        end = _likely(tokenizer, counts) if named is None else named
        share = 0.0 if end is None else float(counts[end] / filled.sum())
        if end is None or not share or (how == "auto" and share <= 1 - NEARLY_ALL):
            without += 1
            continue
        dropped = how == "drop" or (how == "auto" and share >= NEARLY_ALL)
        if dropped:
            each.lengths -= (each.lasts == end) & filled
        group = groups.setdefault(
            (end, dropped), {"id": end, "dropped": dropped, "files": 0, "documents": 0, "documents_with_it": 0}
        )
        for name, count in (("files", 1), ("documents", filled.sum()), ("documents_with_it", counts[end])):
            group[name] += int(count)
    if without:
        what = "a special token" if named is None else _shown(tokenizer, named)
        logger.info("In %s of %s files hardly a document ends with %s.", f"{without:,}", f"{len(adopted):,}", what)
    for group in groups.values():
        _say_end(tokenizer, group, asked=how != "auto")
    return list(groups.values())


def _say_end(tokenizer: Tokenizer, group: dict[str, Any], asked: bool) -> None:
    with_it, documents = group["documents_with_it"], group["documents"]
    share = 100 * with_it / documents
    what = f"{with_it:,} of {documents:,} documents ({share:.1f} %) end with {_shown(tokenizer, group['id'])}"
    if group["dropped"]:
        logger.info("%s, which is dropped when they are read: packing sets its own separators.", what)
    else:
        mend = 'pack with --separator "" where it is to be the separator, or adopt with --end-ids drop'
        logger.log(logging.INFO if asked else logging.WARNING, "%s, which is kept; %s.", what, mend)


def _special(tokenizer: Tokenizer) -> set[int]:
    """Ids of special tokens; none where the tokenizer is a file that names none."""
    if not tokenizer.is_hugging_face:
        return set()
    added = {number for number, token in tokenizer.hf.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.hf.all_special_ids)


def _likely(tokenizer: Tokenizer, counts: npt.NDArray[np.int64]) -> int | None:
    """The special token that ends most documents; None if none ends any."""
    ending = [number for number in sorted(_special(tokenizer)) if counts[number]]
    return max(ending, key=lambda number: int(counts[number]), default=None)


def _shown(tokenizer: Tokenizer, number: int) -> str:
    return f"{tokenizer.decode([number])!r} (id {number})"


def say_beginnings(tokenizer: Tokenizer, counts: npt.NDArray[np.int64]) -> None:
    """Warn of documents that begin with a special token, which stays."""
    beginning = [number for number in sorted(_special(tokenizer)) if counts[number] > counts.sum() / 2]
    for number in beginning:
        logger.warning(
            "%s of %s documents begin with %s, which stays: it is a separator already.",
            *(f"{counts[number]:,}", f"{counts.sum():,}", _shown(tokenizer, number)),
        )
