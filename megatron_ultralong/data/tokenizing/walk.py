"""Which files the inputs name: the one walk over files, folders, globs, URLs and standard input.

A folder is taken whole, in the order of its names, symbolic links followed. Of what it holds nothing is left out
without a word: files of unknown endings and hidden ones are counted in the log, links that lead back and what a corpus
wrote (its files beside its manifest, its PREFIX.parts) are named there, and what cannot be read is refused.

Cost: one stat a file, none of its path resolved. 100,000 files take half a second.
"""

from __future__ import annotations

import collections
import functools
import glob
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.tokenizing import remote, urls
from megatron_ultralong.data.tokenizing.compression import ENDINGS, compression
from megatron_ultralong.data.tokenizing.shards import FileRange, Format
from megatron_ultralong.data.tokenizing.streams import STDIN, unreadable
from megatron_ultralong.errors import UserError, listing, shown

logger = logging.getLogger(__name__)

_ENDINGS: dict[str, Format] = {
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".json": "json",
    ".parquet": "parquet",
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), "text"),
}

Identity = tuple[int, int] | str
"""Device and inode, or URL: what a file or folder is, whatever it is called."""


def find_files(
    inputs: Sequence[Path | str],
    format: Format | Literal["auto"] = "auto",
    prefix: Path | None = None,
    flag: str = "--input",
) -> list[FileRange]:
    """The files that `inputs` name, each as one whole piece, in their order.

    Args:
        inputs: files, folders, globs, URLs of these, or -.
        format: what is in them; "auto": by their endings.
        prefix: PREFIX of the corpus that will be written, whose files are no input.
        flag: what names them, for the log and for sentences; only --input has an --input-format beside it.

    Raises:
        UserError: an input is missing, unreadable, empty of files, named twice, or would be overwritten; the ending of
            a file does not say its format.
    """
    walk = _Walk(format, flag)
    for each in inputs:
        walk.take(str(each))
    if not walk.files:
        raise UserError(f"{flag}: names no file; give files, folders or globs.")
    walk.log()
    for path in corpus.all_files(prefix) if prefix is not None else ():
        try:
            found = walk.seen.get(_identity(os.stat(path)))
        except OSError:
            continue  # there is none yet
        if found is not None:
            raise UserError(f"{shown(found)}: the output would overwrite this input; choose another --output-prefix.")
    return walk.files


class _Walk:
    """What was found so far."""

    def __init__(self, format: Format | Literal["auto"], flag: str) -> None:
        self.format, self._flag = format, flag
        self._choice = ", or say --input-format" if flag == "--input" else ""
        self.files: list[FileRange] = []
        self.seen: dict[Identity, str] = {}
        self._folders: dict[Identity, str] = {}
        self._endings: collections.Counter[str] = collections.Counter()
        self._hidden, self._first, self._named = 0, "", list[str]()

    def take(self, name: str, in_glob: bool = False) -> None:
        """Take what one input names, or one match of a glob, where a folder may be empty."""
        if name == STDIN:
            return self._take_stream()
        name = urls.checked(name) if urls.is_url(name) else name
        if urls.is_url(name):
            return self._take_url(name)
        try:
            status = os.stat(name)
        except OSError as error:
            if glob.has_magic(name):
                self._take_glob(name)
            elif isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise UserError(f"{shown(name)}: the input is missing; name a file that exists.") from None
            else:
                raise unreadable(name, error) from None
            return
        path = str(Path(name))
        if stat.S_ISDIR(status.st_mode):
            return self._take_folder(path, in_glob, lambda: self._walk_folder(path, status))
        self._take_file(path, self._known_format(path), file_source(path), status)

    def _known_format(self, path: str) -> Format:
        """What is in a file that an input names."""
        known = _format(path) if self.format == "auto" else self.format
        if known is None:
            raise UserError(
                f"{shown(path)}: its ending does not say what is in it (known: {', '.join(_ENDINGS)}, and "
                f"{', '.join(ENDINGS)} of text and JSON); rename it{self._choice}."
            )
        return known

    def _take_stream(self) -> None:
        known = "jsonl" if self.format == "auto" else self.format
        if known == "parquet":
            raise UserError("--input -: Parquet cannot be read from standard input; name its files.")
        self.files.append(FileRange(STDIN, known, "stdin", 0, None, 0, (0, 0)))

    def _take_glob(self, pattern: str) -> None:
        matches = sorted(glob.glob(pattern, recursive=True))
        entered = {os.path.dirname(match.rstrip("/")) for match in matches}  # by ** or the like
        before = len(self.files)
        for match in matches:
            if match.rstrip("/") not in entered:
                self.take(match, in_glob=True)
        if len(self.files) == before:
            raise UserError(f"{shown(pattern)}: matches no file; name an input that exists.")

    def _take_url(self, url: str) -> None:
        """Take an object, all in a folder, or what a glob matches."""
        found = remote.look(url)
        some = [found] if found else remote.matches(url) if glob.has_magic(url) else []
        if not some:
            raise UserError(f"{shown(url)}: names no object, folder or match; name an input that exists.")
        entered = {os.path.dirname(each.url) for each in some}  # by ** or the like
        for each in some:
            if not each.is_folder:
                self._add(each.url, self._known_format(each.url), file_source(each.url), each.url, each.stamp)
            elif each.url not in entered:
                self._take_folder(each.url, found is None, functools.partial(self._walk_url, each.url))

    def _walk_url(self, folder: str) -> None:
        """Take the files of a folder in a store; hidden ones count as often as there are hidden names."""
        hidden = set()
        for each in remote.below(folder):
            parts = each.url[len(folder) + 1 :].split("/")
            first = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
            if first is not None:
                hidden.add(tuple(parts[: first + 1]))
            elif known := self._format_of(parts[-1], each.url):
                self._add(each.url, known, shown(each.url.split("/")[-2]), each.url, each.stamp)
        self._hidden += len(hidden)

    def _take_folder(self, name: str, in_glob: bool, walk: Callable[[], None]) -> None:
        files, left, hidden = len(self.files), self._endings.total(), self._hidden
        walk()
        if len(self.files) == files and not in_glob:
            others = self._endings.total() - left
            what = f"none of its {others} files ends in {', '.join(_ENDINGS)}" if others else "has no file in it"
            what += f" that is not hidden ({self._hidden - hidden} are)" if self._hidden > hidden else ""
            raise UserError(f"{shown(name)}: {what}; name another folder{self._choice}.")

    def _walk_folder(self, folder: str, status: os.stat_result) -> None:
        """Take the files of a folder and of those in it, which are kept on a stack: they may be any number deep."""
        if self._is_parts(folder):
            return
        source = os.path.basename(os.path.realpath(folder))
        stack: list[tuple[Identity, str, Iterator[os.DirEntry[str]]]] = [self._enter(folder, source, status)]
        while stack:
            _, source, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            try:
                if not entry.is_dir():
                    if known := self._format_of(entry.name, entry.path):
                        self._take_file(entry.path, known, source, entry.stat())
                    continue
                status = entry.stat()
            except OSError as error:
                if isinstance(error, FileNotFoundError) and entry.is_symlink():
                    raise UserError(f"{shown(entry.path)}: is a link to what is missing; mend or remove it.") from None
                raise unreadable(entry.path, error) from None
            if _identity(status) in {identity for identity, *_ in stack}:
                self._named.append(f"{shown(entry.path)} (leads back to a folder that it is in)")
            elif not self._is_parts(entry.path):
                stack.append(self._enter(entry.path, entry.name, status))

    def _enter(
        self, folder: str, source: str, status: os.stat_result
    ) -> tuple[Identity, str, Iterator[os.DirEntry[str]]]:
        """A folder's entries in the order of their names, without hidden ones and the files of a corpus."""
        if before := self._folders.get(_identity(status)):
            raise _named_twice(folder, before)
        self._folders[_identity(status)] = folder
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            raise unreadable(folder, error) from None
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        self._hidden += len(entries) - len(visible)
        written: set[str] = set()
        names = {entry.name for entry in visible}
        for index in (name for name in names if name.endswith(".idx")):
            manifest = corpus.manifest_path(Path(folder, index.removesuffix(".idx")))
            if manifest.name in names and corpus.is_manifest(manifest):
                self._named.append(f"{shown(manifest)} and its tokens (a corpus)")
                written |= {path.name for path in corpus.all_files(Path(index.removesuffix(".idx")))}
        return _identity(status), shown(source), iter([entry for entry in visible if entry.name not in written])

    def _is_parts(self, folder: str) -> bool:
        """Whether it is some corpus's PREFIX.parts, which is named in the log."""
        if not (folder.endswith(".parts") and os.path.exists(os.path.join(folder, "lock"))):
            return False
        self._named.append(f"{shown(folder)} (the parts of a corpus)")
        return True

    def _format_of(self, name: str, path: str) -> Format | None:
        """What is in a file of a folder, or None, counted, if that is not known."""
        known = _format(name) if self.format == "auto" else self.format
        if known is None:
            self._first = self._first or path
            self._endings[os.path.splitext(name)[1] or "no ending"] += 1
        return known

    def _take_file(self, path: str, known: Format, source: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{shown(path)}: is neither a file nor a folder; name one, or - for standard input.")
        self._add(path, known, source, _identity(status), (status.st_size, status.st_mtime_ns))

    def _add(self, path: str, known: Format, source: str, identity: Identity, stamp: tuple[int, int | str]) -> None:
        if known == "parquet" and compression(path):
            raise UserError(
                f"{shown(path)}: Parquet compresses itself and cannot be read from an archive; decompress the file."
            )
        before = self.seen.get(identity)
        if before is not None and os.path.realpath(before) == os.path.realpath(path):  # else they are hard links
            raise _named_twice(path, before)
        self.seen[identity] = path
        self.files.append(FileRange(path, known, source, 0, None, stamp[0], stamp))

    def log(self) -> None:
        """Say what was left out."""
        if self._endings:
            kinds = listing((f"{shown(ending)} {count}" for ending, count in self._endings.most_common()), most=8)
            logger.warning(
                "%s: %s files are left out for their endings (%s; the first is %s); name them%s.",
                *(self._flag, self._endings.total(), kinds, shown(self._first), self._choice),
            )
        if self._hidden:
            logger.info("%s: %s hidden files or folders are left out.", self._flag, self._hidden)
        unknown = [file.path for file in self.files if file.stamp[1] == ""]
        if unknown:
            logger.warning(
                "%s: of %s objects nothing but the size tells that they change; the first is %s.",
                *(self._flag, len(unknown), shown(unknown[0])),
            )
        if self._named:
            logger.info("%s: left out: %s.", self._flag, listing(self._named))


def file_source(path: str) -> str:
    """Name of a file without its endings: the source of its documents, where nothing else says it."""
    name = os.path.basename(path)
    return shown(name[: len(name) - len(compression(name))].rsplit(".", 1)[0])


def _format(name: str) -> Format | None:
    name = name[: len(name) - len(compression(name))]
    return _ENDINGS.get(name[name.rfind(".") :].lower())


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _named_twice(path: str, before: str) -> UserError:
    what = "is" if path == before else f"is {shown(before)}, which is"
    return UserError(f"{shown(path)}: {what} named twice; name it once.")
