"""Inputs that lie in an object store or on a web server: what their URLs name, and their bytes by ranges.

fsspec reads them, with the package of the URL's scheme and that package's own credentials. Nothing is downloaded whole:
a reader asks for 8 MiB at a time, Parquet for the column chunks of a row group. A URL goes into logs and manifests, so
one that holds a secret is refused. Each process opens a store anew: workers are spawned, and fsspec's loop is a thread.

Cost: for a folder or glob the store's list, of 1,000 objects a request on S3; for each named file a request or two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_ultralong.data.tokenizing.urls import PACKAGES, WEB
from megatron_ultralong.errors import UserError, shown

BLOCK = 1 << 22
"""Bytes of a read; a request asks for as many more beside them."""

SMALL = 1 << 16
"""The same of a reader that looks for the end of one line."""

_VERSIONS = (
    *("ETag", "etag", "blob_id", "xet_hash", "generation", "md5Hash", "Content-MD5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created"),
)
_TALKERS = ("aiobotocore", "botocore", "s3fs", "gcsfs", "fsspec", "huggingface_hub", "httpx", "httpx2", "asyncio")
_WEB_WAITS = (1.0, 5.0)  # seconds before a read is tried again; the stores' own packages do that themselves


@dataclasses.dataclass(frozen=True)
class Remote:
    """An object or folder, as its store states it."""

    url: str
    """Its whole URL, without a slash at the end."""
    size: int
    """Bytes; 0 of a folder."""
    version: str
    """Its etag or what the store has instead, down to the time of its last change; "" if there is none."""
    is_folder: bool = False
    """Whether it is a folder."""

    @property
    def stamp(self) -> tuple[int, str]:
        """What tells that it changed."""
        return self.size, self.version


def look(url: str) -> Remote | None:
    """What a URL names now, asked of the store and not of what was listed before; None if there is nothing.

    Raises:
        UserError: the store does not tell.
    """
    system, path = _store(url)
    try:
        with _named(url):
            if url.startswith("hf:"):
                return _remote(system, system.info(path, refresh=True))
            system.invalidate_cache(path)
            return _remote(system, system.info(path))
    except FileNotFoundError:
        return None


def matches(pattern: str) -> list[Remote]:
    """What a glob matches, in the order of the names, without hidden files and folders.

    Raises:
        UserError: the store does not tell, or has no list.
    """
    system, path = _store(pattern)
    _refuse_web(pattern)
    found: dict[str, Mapping[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError), _named(pattern):
        system.invalidate_cache()
        found = system.glob(path, detail=True)
    remotes = sorted((_remote(system, info) for info in found.values()), key=lambda each: each.url)
    return [each for each in remotes if "/." in pattern or "/." not in each.url]


def below(folder: str) -> list[Remote]:
    """The files of a folder and of those in it, in the order in which a walk over local folders meets them.

    Raises:
        UserError: the store does not tell, or has no list.
    """
    system, path = _store(folder)
    _refuse_web(folder)
    with _named(folder):
        system.invalidate_cache()
        found = system.find(path, detail=True).values()
    files = [_remote(system, info) for info in found if not info["name"].endswith("/")]  # which stands for a folder
    return sorted((each for each in files if not each.is_folder), key=lambda each: each.url.split("/"))


def opened(url: str, block: int = BLOCK, end: int | None = None) -> Reader:
    """The bytes of an object, from any place.

    Args:
        url: it.
        block: bytes that are fetched beside those of a read; 0: none, as for Parquet, whose reader knows its ranges.
        end: the byte after the last that is read; None: the object's end.

    Raises:
        UserError: it is gone or cannot be read; so does each read.
    """
    system, path = _store(url)
    try:
        with _named(url):
            kind = "readahead" if block else "none"
            return Reader(url, system.open(path, "rb", block_size=block or BLOCK, cache_type=kind, size=end))
    except FileNotFoundError:
        raise _vanished(url) from None


class Reader(io.RawIOBase):
    """A file of fsspec's whose errors are sentences, and which never ends early without one."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file
        self._waits = _WEB_WAITS if url.startswith(WEB) else ()

    def readable(self) -> bool:
        """It is read alone."""
        return True

    def seekable(self) -> bool:
        """From any place."""
        return True

    def tell(self) -> int:
        """The place, in bytes."""
        return int(self._file.tell())

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        with _named(self._url):
            return int(self._file.seek(place, whence))

    def read(self, size: int = -1) -> bytes:
        """All of the next `size` bytes, or what is left of the object.

        Raises:
            UserError: its store does not give them.
        """
        total = self._file.size
        if total is not None:
            left = max(0, total - self.tell())
            size = left if size < 0 else min(size, left)
        try:
            with _named(self._url):
                block = self._fetch(size)
        except FileNotFoundError:
            raise _vanished(self._url) from None
        if total is not None and len(block) < size:
            raise UserError(
                f"{shown(self._url)}: gave {len(block)} bytes of {size} that were asked for; run again, finished "
                "shards are kept."
            )
        return block

    def _fetch(self, size: int) -> bytes:
        for wait in self._waits:
            try:
                return bytes(self._file.read(size))
            except Exception as error:  # whatever the client of a web server calls a cut line
                if isinstance(error, (FileNotFoundError, ValueError)) or 400 <= getattr(error, "status", 0) < 500:
                    raise
                time.sleep(wait)
        return bytes(self._file.read(size))

    def close(self) -> None:
        """Let go of what was fetched."""
        if not self.closed:
            self._file.close()
        super().close()


def _store(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the URL's path in it."""
    scheme = url.partition("://")[0]
    system = _system(scheme)
    with _named(url):
        return system, system._strip_protocol(url)


@functools.cache
def _system(scheme: str) -> Any:
    for name in _TALKERS:  # which log requests at their usual level, some with what they are signed by
        logging.getLogger(name).setLevel(logging.WARNING)
    package = PACKAGES[scheme]
    try:
        import fsspec

        options = {"client_kwargs": {"trust_env": True}} if scheme in WEB else {}  # proxies
        with _named(f"{scheme}://"):
            return fsspec.filesystem(scheme, **options)
    except ImportError:
        raise UserError(f"input {scheme}://...: needs {package} to be read; pip install {package}.") from None


def _remote(system: Any, info: Mapping[str, Any]) -> Remote:
    url = str(system.unstrip_protocol(info["name"])).rstrip("/")
    if info["type"] == "directory":
        return Remote(url, 0, "", is_folder=True)
    size = info.get("size")
    if size is None:
        raise UserError(f"{shown(url)}: its server does not tell its size; fetch the file and name it by its path.")
    version = next((info[key] for key in _VERSIONS if info.get(key)), "")
    version = getattr(version, "timestamp", lambda: version)()  # a list may state the time in another form
    return Remote(url, int(size), str(version).strip('"'))


def _refuse_web(url: str) -> None:
    if url.startswith(WEB):
        raise UserError(f"{shown(url)}: a web server has no list of its files; name each.")


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    """Make a sentence of whatever a store's package raises.

    Raises:
        FileNotFoundError: there is no such object.
        ImportError: the package is missing.
        UserError: anything else.
    """
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:  # each package has classes of its own
        web = url.startswith(WEB) and isinstance(error, FileNotFoundError)  # there any failure is called so
        cause = (web and error.__cause__) or error
        if isinstance(cause, FileNotFoundError) or (web and getattr(cause, "status", 0) == 404):
            raise FileNotFoundError(url) from None
        raise UserError(f"{shown(url)}: {_reason(cause)}") from None


def _vanished(url: str) -> UserError:
    return UserError(f"{shown(url)}: vanished; put it back, or run again without it.")


def _reason(error: BaseException) -> str:
    kind = type(error).__name__
    text = re.sub(r"://[^/\s]*@", "://", " ".join(str(error).split()))  # a secret may stand in what is quoted
    text = re.sub(r"\?[^\s'\")]*", "", text).rstrip(".")[:300] or kind
    if isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403) or "redential" in kind:
        return f"may not be read ({text}); give credentials by the environment (docs/data.md), or ask for access."
    if kind == "FileExpired":
        return "changed while it was read; run again."
    return f"cannot be read ({text}); run again."
