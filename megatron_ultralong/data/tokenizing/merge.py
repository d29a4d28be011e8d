"""Finished parts, in the order of the input, into one corpus: one sequential copy, made by the kernel.

On filesystems that share blocks (btrfs, XFS) nothing is copied at all. Memory: the lengths of one part.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.corpus.indexed_dataset import write_index
from megatron_ultralong.data.corpus.source_ids import write_sources
from megatron_ultralong.data.tokenizing.parts import Part, finished
from megatron_ultralong.data.tokenizing.shards import Shard
from megatron_ultralong.data.tokenizing.streams import LineNumbers
from megatron_ultralong.data.tokenizing.worker import place
from megatron_ultralong.files import atomic_file, fingerprint

_DOCUMENTS = 1 << 20


def merge_parts(
    folders: Sequence[Path],
    shards: Sequence[Shard],
    prefix: Path,
    kind: str,
    dtype: np.dtype[Any],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write PREFIX.* (see `corpus`) from the parts of all shards, the manifest last, and return it.

    Args:
        folders: the parts' folders, in order.
        shards: what they were made from.
        prefix: PREFIX.
        kind: "text" or "chat".
        dtype: of the tokens.
        about: what the manifest says about inputs and tokenizer.
    """
    parts = [finished(folder) for folder in folders]
    with contextlib.ExitStack() as stack:
        # Renamed in the reverse order: the manifest last.
        manifest_file = stack.enter_context(atomic_file(corpus.manifest_path(prefix)))
        final = [*corpus.token_files(prefix, kind), corpus.sources_path(prefix), corpus.inputs_path(prefix)]
        *tokens, sources, inputs = [stack.enter_context(atomic_file(path)) for path in final]
        dtypes = [dtype, np.dtype("u1")]
        for i, name in enumerate(["tokens", "mask"][: len(tokens) // 2]):
            write_index(
                tokens[2 * i], dtypes[i], sum(part.documents for part in parts), lambda: _columns(folders, "lengths")
            )
            _concatenate([folder / f"{name}.bin" for folder in folders], tokens[2 * i + 1])
        _concatenate([folder / "inputs.tsv" for folder in folders], inputs)
        manifest = {
            "version": corpus.VERSION,
            "kind": kind,
            **_counts(parts, kind),
            **_write_sources(folders, parts, sources),
            "tokens_fingerprint": corpus.combined_fingerprint(tokens),
            "inputs": sum(part.inputs for part in parts),
            "inputs_fingerprint": fingerprint(inputs),
            **about,
        }
        if manifest["skipped_documents"]:
            skipped_file = stack.enter_context(atomic_file(corpus.skipped_path(prefix)))
            skipped_file.write_text("".join(skipped_lines(shards, parts)), encoding="utf-8")
        else:
            corpus.skipped_path(prefix).unlink(missing_ok=True)
        _remove_earlier(prefix, kind)
        manifest_file.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        corpus.manifest_path(prefix).unlink(missing_ok=True)
    return manifest


def _remove_earlier(prefix: Path, kind: str) -> None:
    """Remove the masks of chats that were there before texts."""
    for path in set(corpus.token_files(prefix, "chat")) - set(corpus.token_files(prefix, kind)):
        path.unlink(missing_ok=True)


def _counts(parts: Sequence[Part], kind: str) -> dict[str, int]:
    split = {name: sum(getattr(part, name) for part in parts) for name in ("split_chats", "split_samples")}
    return {
        "documents": sum(part.documents for part in parts),
        "tokens": sum(part.tokens for part in parts),
        "empty_documents": sum(part.empty for part in parts),
        "skipped_documents": sum(len(part.skipped) for part in parts),
        **(split if kind == "chat" else {}),
    }


def skipped_lines(shards: Sequence[Shard], parts: Sequence[Part]) -> Iterator[str]:
    """One line for each malformed document that was left out: its place, a tab, the reason."""
    numbers = LineNumbers()
    for shard, part in zip(shards, parts, strict=True):
        for number, row, reason in part.skipped:
            yield f"{place(shard.ranges[number], row, numbers)}\t{reason}\n"


def _columns(folders: Sequence[Path], name: str) -> Iterator[npt.NDArray[np.int32]]:
    for folder in folders:
        with (folder / f"{name}.bin").open("rb") as stream:
            while len(some := np.frombuffer(stream.read(4 * _DOCUMENTS), dtype="<i4")):
                yield some


def _write_sources(folders: Sequence[Path], parts: Sequence[Part], path: Path) -> dict[str, Any]:
    """Write sources.npy, and give the manifest the names and the documents and tokens by source and length."""
    names = list(dict.fromkeys(name for part in parts for name in part.sources))
    numbers = {name: i for i, name in enumerate(names)}
    columns = (
        (np.array([numbers[name] for name in part.sources], dtype="<i4")[local], lengths)
        for folder, part in zip(folders, parts, strict=True)
        for local, lengths in zip(_columns([folder], "sources"), _columns([folder], "lengths"), strict=True)
    )
    return write_sources(path, names, sum(part.documents for part in parts), columns)


def _concatenate(sources: Sequence[Path], target: Path) -> None:
    with target.open("wb") as out:
        for source in sources:
            with source.open("rb") as stream:
                _append(stream, out, source.stat().st_size)


def _append(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Append a file, in the kernel where it can."""
    copy: Callable[..., int] | None = getattr(os, "copy_file_range", None)
    done = 0
    with contextlib.suppress(OSError):  # across filesystems, or not supported: copied below; a full disk shows there
        while copy is not None and done < size and (some := copy(source.fileno(), target.fileno(), size - done)):
            done += some
    source.seek(done)
    shutil.copyfileobj(source, target, 1 << 22)
    target.flush()
