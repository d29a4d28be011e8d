"""What a run was made with: its configuration as JSON, the versions and the commit, written beside checkpoints.

Read from package metadata and git: nothing heavy is imported, and it costs one call of git.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import megatron_ultralong
from megatron_ultralong.config.sections import RunConfig


def resolved(config: RunConfig, **extra: Any) -> dict[str, Any]:
    """The configuration as JSON takes it, with what else it takes to repeat the run.

    Args:
        config: every field, given or default.
        extra: more entries for the top level, already fit for JSON.

    Returns:
        The sections, `versions` (of python and the packages whose numerics matter; None: not installed)
        and `git_commit` (with "-dirty" when tracked files differ from it; None: not run from a clone).
    """
    return {**_plain(dataclasses.asdict(config)), "versions": versions(), "git_commit": git_commit(), **extra}


def _plain(value: Any) -> Any:
    """Paths as text and tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str | None]:
    """Versions from the installed packages' metadata: none of them is imported."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "megatron-ultralong": megatron_ultralong.__version__,
    }
    for package in ("torch", "megatron-core", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit this package runs from, or None where it is not a clone or git is not there."""
    root = Path(megatron_ultralong.__file__).parents[1]
    if not (root / ".git").exists():  # not just any repository that site-packages happens to lie in
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
