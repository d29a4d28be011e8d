"""PREFIX.parts: who may write in it, when it goes, and what array tasks need not find out twice.

One run holds it alone, array tasks (`--shard`) hold it together. Only a run that holds it alone removes it or anything
in it: a task that has nothing to do must not take it from under the others. Beside the parts `lock` and
`row_groups.json` are in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megatron_ultralong.data.tokenizing import urls
from megatron_ultralong.data.tokenizing.shards import FileRange
from megatron_ultralong.data.tokenizing.worker import writing_error
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_file

logger = logging.getLogger(__name__)

_OTHERS = {"lock", "row_groups.json"}


@contextlib.contextmanager
def held(parts: Path, shared: bool) -> Iterator[None]:
    """Hold `parts`, which is made; alone, without what killed runs left, and removing it at the end if it has no part.

    Raises:
        UserError: another run holds it, or it cannot be made.
    """
    try:
        lock = _locked(parts, shared)
    except OSError as error:
        raise writing_error(error, parts) from None
    with lock:
        if shared:
            yield
            return
        try:
            for left in parts.glob("*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            if parts.is_dir() and {path.name for path in parts.iterdir()} <= _OTHERS:
                shutil.rmtree(parts, ignore_errors=True)
                with contextlib.suppress(OSError):
                    parts.parent.rmdir()  # which removes it only if it is empty


def _locked(parts: Path, shared: bool) -> IO[str]:
    while True:
        parts.mkdir(parents=True, exist_ok=True)
        try:
            lock = (parts / "lock").open("a")
        except FileNotFoundError:  # removed in between
            continue
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                return lock
        except FileNotFoundError:  # removed in between, so that the lock is nobody else's
            pass
        except BlockingIOError:
            lock.close()
            raise UserError(f"{parts}: another run is writing this corpus; wait for its end.") from None
        except OSError:
            logger.warning("%s: this filesystem has no locks; start no second run of the corpus.", parts)
            return lock
        lock.close()


class RowGroups:
    """Bytes of the row groups of Parquet files, read from each file once by all runs that share `parts`."""

    def __init__(self, parts: Path) -> None:
        self._path = parts / "row_groups.json"
        self._known: dict[str, list[Any]] = {}
        self._found = False
        with contextlib.suppress(OSError, ValueError):
            self._known = dict(json.loads(self._path.read_text()))

    def __call__(self, file: FileRange) -> list[int]:
        """Of one file, which is read unless it is known as it is."""
        from megatron_ultralong.data.tokenizing.parquet import row_group_bytes

        name, stamp = urls.absolute(file.path), list(file.stamp)
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            known = self._known[name] = [stamp, row_group_bytes(file.path)]
            self._found = True
        sizes: list[int] = known[1]
        return sizes

    def keep(self) -> None:
        """Write what was not known, for other runs; `parts` is held."""
        if self._found:
            with atomic_file(self._path) as temporary:
                temporary.write_text(json.dumps(self._known))
