"""A user's clone of a benchmark's repository: literals of its sources, and which commit it is. Nothing is executed."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError


def literals(path: Path, name: str) -> Iterator[Any]:
    """Values that are assigned to a name anywhere in a Python file, in order, as far as they are literals.

    Raises:
        UserError: the file is missing or no Python.
    """
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the clone's root by --official.") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: it is no Python ({error}); clone the repository anew.") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            try:
                yield ast.literal_eval(node.value)
            except ValueError:
                continue


def clone_commit(folder: Path) -> str | None:
    """The commit that a clone is at, "-dirty" behind it when tracked files differ; None: it is no git clone."""
    if not (Path(folder) / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
