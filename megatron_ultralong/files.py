"""Artefacts on disk appear whole or not at all, and name what they were made from.

Everything is written beside its final name, synced and renamed into place, so a kill leaves either the old artefact or
the new one, and a power cut too; of a folder that is being replaced, at worst the old one under `.NAME.HOST.PID.old`.
The next writer of the same name removes what killed ones left (leftovers.py). Fingerprints are
SHA-256; for data files of many gigabytes the hash covers the size and 64 evenly spread 64 KiB blocks, which costs
4 MiB of reading whatever the file's size.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.leftovers import alive, beside, remove_leftovers, touch

_BLOCK = 1 << 16
_BLOCKS = 64


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path, "tmp")
    temporary = beside(path, "tmp")
    try:
        with alive(temporary):
            yield temporary
            sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success all in it is synced and it replaces `path`, else it goes."""
    path = Path(os.path.realpath(path))
    temporary = beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path, "tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder.") from None
    try:
        with alive(temporary):
            yield temporary
            for entry in temporary.rglob("*"):
                if not entry.is_symlink():
                    sync(entry)
            sync(temporary)
        replace_directory(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    remove_leftovers(path, "old")


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk; a file system without the latter is let pass."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path, mend: str = "free some space or choose another place") -> UserError:
    """The one sentence for a full disk, a folder that is read-only or the like, met while `path` was written."""
    why = error.strerror or f"{error}: the disk may be full"  # the latter is numpy's
    return UserError(f"{path}: cannot be written ({why}); {mend}.")


@contextlib.contextmanager
def disk_errors_named(path: Path, mend: str = "free some space or choose another place") -> Iterator[None]:
    """`disk_error` for whatever OSError comes up inside.

    Raises:
        UserError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, mend) from None


def replace_directory(source: Path, target: Path) -> None:
    """Rename `source` to `target`, moving an existing `target` aside first and deleting it afterwards."""
    aside = beside(target, "old")
    if target.exists():
        touch(target)  # its lease as something put aside begins now
        target.rename(aside)
    source.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def writable(folder: Path) -> bool:
    """Whether `folder`, which may be yet to be made, can take files."""
    absolute = Path(folder).absolute()
    existing = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def refuse_output(path: Path, flag: str) -> None:
    """Refuse to write to a URL.

    Raises:
        UserError: `path` is one.
    """
    if found := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(path)):  # Path has made one slash of two
        raise UserError(f"{flag} {found[1]}://...: only local files are written; give a path, and copy them after.")


def refuse_others(folder: Path, names: Collection[str]) -> None:
    """Refuse to replace what is no folder of the files `names` alone, since replacing deletes all that is there.

    Raises:
        UserError: `folder` is a file or a URL, or holds something else.
    """
    refuse_output(folder, "--output")
    folder = Path(folder)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"--output: {folder} is a file; name a folder.")
        return
    for path in sorted(folder.iterdir()):
        if path.name not in names:
            raise UserError(f"--output: {folder} holds {path.name}, which would be deleted; name another folder.")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str, mend: str) -> Any:
    """Read a JSON file; `what` and `mend` complete the sentence when it is missing or broken.

    Raises:
        UserError: the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: {what} is missing; {mend}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {what} cannot be read ({error}); {mend}.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: {what} is not JSON ({error.msg}); {mend}.") from None
    except RecursionError:
        raise UserError(f"{path}: {what} is nested too deeply to be read; {mend}.") from None


def fingerprint(path: Path, blocks: int = _BLOCKS) -> str:
    """SHA-256 (hex) over the size and a spread sample of a file: whole for files up to `blocks` (over 1) of 64 KiB."""
    size = Path(path).stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with Path(path).open("rb") as stream:
        if size <= _BLOCK * blocks:
            digest.update(stream.read())
        else:
            for block in range(blocks):
                stream.seek((size - _BLOCK) * block // (blocks - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()
