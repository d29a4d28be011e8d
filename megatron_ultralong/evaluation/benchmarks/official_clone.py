"""Templates and word lists from a user's clone of a benchmark's repository, read as literals and never executed.

A Python file is parsed; an assignment's value is taken if it is made of strings, numbers, lists and dicts alone. The
commit is read from the files in `.git`, so that neither git nor a hook of the clone's is run.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any, TypeVar

from megatron_ultralong.errors import UserError, shown

T = TypeVar("T")

_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


def text_of(path: Path) -> str:
    """A text file of a clone.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
    raise UserError(f"{shown(path)}: cannot be read ({reason}); give --official a clone of the benchmark's repository.")


def literal(path: Path, name: str) -> Any:
    """What a Python file assigns to a name at its top level.

    Raises:
        UserError: the file cannot be read or parsed, does not assign the name, or assigns no literal.
    """
    mend = "give --official a clone of the benchmark's repository, at a commit that has it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in their strings
            body = ast.parse(text_of(path)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{shown(path)}: it is no Python ({error}); {mend}.") from None
    for node in body:
        if isinstance(node, ast.Assign) and name in [ast.unparse(target) for target in node.targets]:
            try:
                return ast.literal_eval(node.value)
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                raise UserError(f"{shown(path)}: '{name}' is not made of literals alone; {mend}.") from None
    raise UserError(f"{shown(path)}: nothing is assigned to '{name}' in it; {mend}.")


def entry(path: Path, name: str, key: str, kind: type[T]) -> T:
    """One entry of a dictionary that a Python file assigns to a name at its top level.

    Raises:
        UserError: as of `literal`, or there is no such entry, or it is of another kind.
    """
    found = literal(path, name)
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"{shown(path)}: '{name}' has no {key}; give --official a clone of the benchmark's repository.")
    return value


def commit(clone: Path) -> str:
    """The commit that a clone has checked out, in hex; "unknown" for a folder that is no clone.

    Raises:
        UserError: there is no such folder.
    """
    clone = Path(clone)
    if not clone.is_dir():
        raise UserError(f"--official: {shown(clone)} is no folder; give a clone of the benchmark's repository.")
    try:
        return _commit(clone / ".git")
    except (OSError, UnicodeDecodeError):
        return "unknown"


def _commit(git: Path) -> str:
    if git.is_file():  # of a worktree or submodule: "gitdir: PATH"
        git = (git.parent / git.read_text().partition("gitdir:")[2].strip()).resolve()
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head if _HASH.fullmatch(head) else "unknown"
    name = head.removeprefix("ref:").strip()
    common = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
    for folder in (git, common):
        if ".." not in name and (folder / name).is_file():
            found = (folder / name).read_text().strip()
            return found if _HASH.fullmatch(found) else "unknown"
    packed = (common / "packed-refs").read_text().splitlines()
    return next((line.split(" ")[0] for line in packed if line.endswith(f" {name}")), "unknown")
