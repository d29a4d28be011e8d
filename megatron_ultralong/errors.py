"""The one exception that means "the user can mend this", and how any error is said.

Command lines print a `UserError` as one sentence and exit with status 2; anything else is a bug of ours, or the
machine's, and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(ValueError):
    """A bad input. The message is one sentence: the file, line or field, its value, and the mend."""


def report(error: BaseException) -> int:
    """Print an error as one text, with its rank where there are several, and return the exit status that it means."""
    rank = os.environ.get("RANK", "0")
    if isinstance(error, UserError):
        said, status = f"error: {error}" if rank == "0" else f"error, rank {rank}: {error}", 2
    elif isinstance(error, KeyboardInterrupt):
        said, status = "stopped by Ctrl-C", 130
    else:
        where = f"rank {rank} failed:\n" if "RANK" in os.environ else ""
        said, status = where + "".join(traceback.format_exception(error)).rstrip(), 1
    sys.stderr.write(said + "\n")
    sys.stderr.flush()
    return status


class MalformedError(Exception):
    """One document cannot be used; the message says why and how to mend it, and begins after its place."""


def raise_problems(subject: Path | str, problems: Sequence[str]) -> None:
    """Raise one UserError that holds every problem found in `subject`, one a line; none found: return."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{subject} has {len(problems)} mistakes:\n  " + "\n  ".join(problems))


def listing(names: Iterable[str], most: int = 4) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shown(path: Path | str) -> str:
    """A path as one line of text: bytes that are no UTF-8, newlines and the like are escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
