"""Token files as others write them: which there are, and where their documents begin.

Megatron-LM, NeMo and datatrove's MegatronDocumentTokenizer write PREFIX.bin and PREFIX.idx (the format is in
`indexed_dataset`), with any number of sequences a document. datatrove's DocumentTokenizer writes NAME.ds, the ids of 2
or 4 bytes, and NAME.ds.index, the u64 token at which each document ends. Cost: 8 bytes of memory a document.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.corpus import is_manifest, manifest_path, mask_prefix
from megatron_ultralong.data.corpus.indexed_dataset import CODES, HEADER, MAGIC, bin_path, idx_path
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
_FAIRSEQ = b"TNTIDX"
_TAKEN = ("uint8", "uint16", "int32", "int64")
_MEND = "write it again with the tool that made it"


@dataclasses.dataclass(frozen=True)
class ForeignFile:
    """One file of tokens and what says where its documents are."""

    tokens: Path
    """The .bin or .ds."""
    index: Path
    """Its .idx or .ds.index."""
    source: str
    """What its documents' source is called."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """What an index says."""

    dtype: np.dtype[Any]
    """Of the tokens on disk."""
    bounds: Ints
    """int64 [documents + 1]: the token at which each document begins; the last one's end. [0] if there is none."""


def find_foreign(words: Sequence[Path], output: Path) -> list[ForeignFile]:
    """The files that prefixes, folders and globs name, in order.

    Args:
        words: PREFIX, PREFIX.bin, PREFIX.idx, NAME.ds, a folder (all in it, by path), or a glob of any of these.
        output: PREFIX of the corpus that is written, which is none of them.

    Raises:
        UserError: there is none, or one is missing, reached twice, elsewhere, of chats, or would be overwritten.
    """
    found: dict[Path, ForeignFile] = {}
    for word in words:
        if url := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(word)):  # Path has made one slash of two
            raise UserError(
                f"--adopt {url[1]}://...: tokens are mapped, never fetched; copy them here and give a path."
            )
        named = [str(word)]
        if glob.has_magic(str(word)) and not Path(word).exists():
            named = sorted(glob.glob(str(word)))
        if not named:
            raise UserError(f"--adopt {word}: no file has such a name; give the PREFIX of a .bin and .idx.")
        files = [file for name in named for file in _below(Path(name))]
        pairs = {file.tokens.resolve(): file for file in files}  # a glob finds both .bin and .idx
        if twice := found.keys() & pairs.keys():
            raise UserError(f"--adopt: {min(twice)} is reached twice; name it once.")
        found |= pairs
    for path, file in found.items():
        if "\n" in str(path) or "\n" in file.source:
            raise UserError(f"--adopt: the name {str(path)!r} has a line end in it; rename it.")
        outputs = [bin_path(output).resolve(), idx_path(output).resolve(), manifest_path(output).resolve()]
        if path in outputs or file.index.resolve() in outputs:
            raise UserError(f"--output-prefix {output}: would overwrite {file.index}; choose another.")
        if bin_path(mask_prefix(path.with_suffix(""))).exists():
            raise UserError(f"--adopt: {file.tokens} is of chats, whose loss mask would be lost; pack it as it is.")
    return list(found.values())


def _below(path: Path) -> list[ForeignFile]:
    """The files of one word."""
    if not path.is_dir():
        return [_pair(path)]
    files = []
    for name in sorted(_walk(path)):
        prefix = name.with_suffix("")
        if is_manifest(manifest_path(prefix)) and not bin_path(prefix).exists():  # an adopted corpus
            continue
        files.append(dataclasses.replace(_pair(name), source=name.parent.resolve().name))
    if not files:
        raise UserError(f"--adopt {path}: holds no .idx beside its .bin and no .ds; name another folder.")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Every .idx and .ds below a folder, links followed, no folder entered twice."""

    def refuse(error: OSError) -> None:
        raise UserError(f"--adopt: {error.filename} cannot be read ({error.strerror}); mend its permissions.")

    entered: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(parent) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(parent))
        folders.sort()
        yield from (Path(parent, name) for name in names if name.endswith((".idx", ".ds")))


def _pair(path: Path) -> ForeignFile:
    """The two files of a prefix or of one of their names."""
    name = str(path).removesuffix(".index")
    if name.endswith(".ds"):
        file = ForeignFile(Path(name), Path(f"{name}.index"), Path(name).stem)
    else:
        prefix = Path(name.removesuffix(".bin").removesuffix(".idx"))
        file = ForeignFile(bin_path(prefix), idx_path(prefix), prefix.name)
    for each in (file.tokens, file.index):
        if not each.is_file():
            raise UserError(f"--adopt {path}: {each} is missing; give the PREFIX of a .bin and .idx, or a .ds.")
    return file


def read_documents(file: ForeignFile) -> Documents:
    """Read an index and hold it against the size of its tokens.

    Raises:
        UserError: it is damaged, of another format, or not of these tokens.
    """
    read: Callable[[Path, int], Documents] = _read_datatrove if file.tokens.suffix == ".ds" else _read_megatron
    found = read(file.index, file.tokens.stat().st_size)
    size, described = file.tokens.stat().st_size, int(found.bounds[-1]) * found.dtype.itemsize
    if size != described:
        raise UserError(f"{file.tokens}: holds {size} bytes where {file.index.name} describes {described}; {_MEND}.")
    return found


def _read_datatrove(path: Path, size: int) -> Documents:
    content = path.read_bytes()
    if not any(content):  # no document, or none with a token
        return Documents(np.dtype("<u2"), np.zeros(1, dtype=np.int64))
    ends = np.frombuffer(content[: len(content) // 8 * 8], dtype="<u8").astype(np.int64)
    if len(content) % 8 or len(ends) == 0 or ends[0] < 0 or (np.diff(ends) < 0).any():
        raise UserError(f"{path}: is no list of the ends of documents, ascending and of 8 bytes each; {_MEND}.")
    width = size // max(int(ends[-1]), 1)
    if width not in (2, 4):
        raise UserError(f"{path}: its documents have {ends[-1]} tokens, which are not 2 or 4 bytes each of the {size}.")
    if Path(f"{str(path).removesuffix('.index')}.loss").exists():
        logger.warning("%s: its .loss is not read; every token is learnt.", path)
    return Documents(np.dtype("<u2" if width == 2 else "<i4"), np.concatenate([[0], ends]))


def _read_megatron(path: Path, size: int) -> Documents:
    raw = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, dtype=np.uint8)
    head = raw[: HEADER.size].tobytes()
    if head.startswith(_FAIRSEQ):
        raise UserError(f"{path}: is of the older 'lazy' or 'cached' format; convert it with --dataset-impl mmap.")
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise UserError(f"{path}: does not begin as the index of an IndexedDataset; name the right file.")
    _, version, code, count, bounds = HEADER.unpack(head)
    if version != 1 or code not in CODES:
        raise UserError(f"{path}: version {version} with dtype code {code} is not known, only version 1; {_MEND}.")
    dtype = np.dtype(CODES[code])
    if dtype.name not in _TAKEN:
        raise UserError(f"{path}: holds {dtype.name}, and tokens are one of {', '.join(_TAKEN)}; {_MEND}.")
    expected = HEADER.size + 12 * count + 8 * bounds
    if count and len(raw) == expected + count:
        raise UserError(f"{path}: has a mode for each sequence, as multimodal data does; only text can be adopted.")
    if len(raw) != expected:
        raise UserError(f"{path}: holds {len(raw)} bytes where its counts describe {expected}; {_MEND}.")
    place = HEADER.size + 4 * count
    lengths = raw[HEADER.size : place].view("<i4")
    offsets = raw[place : place + 8 * count].view("<i8")
    indices = raw[place + 8 * count :].view("<i8").astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if int(lengths.min(initial=0)) < 0 or not np.array_equal(offsets, ends[:-1] * dtype.itemsize):
        raise UserError(f"{path}: its sequences do not lie one behind the other; {_MEND}.")
    if not bounds or indices[0] != 0 or indices[-1] != count or (np.diff(indices) < 0).any():
        raise UserError(f"{path}: its documents do not cover its {count} sequences in order; {_MEND}.")
    return Documents(dtype, ends[indices])
