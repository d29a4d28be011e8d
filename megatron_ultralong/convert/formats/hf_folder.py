"""Hugging Face folders: weights read by rows from safetensors, shards planned, and the files beside them.

Opening reads the headers only. Nothing pickled is opened unless it is asked for (pickles.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.convert.formats import pickles
from megatron_ultralong.convert.formats.row_stream import Files
from megatron_ultralong.convert.formats.safetensors_file import read_header
from megatron_ultralong.data.tokenizer.identity import tokenizer_fingerprint
from megatron_ultralong.errors import UserError, listing
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.families.rules import Shape
from megatron_ultralong.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "*.jinja",
    "chat_template*",
    "additional_chat_templates",
)
"""Patterns of what a tokenizer and its chat templates consist of."""
RUN = 1 << 28
"""Bytes of a file that one thread writes or checks at a time, while others have other parts of it."""


@dataclasses.dataclass(frozen=True)
class HfFolder:
    """A model in Hugging Face format.

    Attributes:
        path: the folder.
        config: its config.json, with its loader's defaults.
        files: tensor name -> the file that holds it.
        shapes: tensor name -> shape.
        dtypes: tensor name -> dtype.
        offsets: tensor name -> first byte in its file; none for pickles.
        reader: what reads the bytes.
    """

    path: Path
    config: dict[str, Any]
    files: dict[str, Path]
    shapes: dict[str, Shape]
    dtypes: dict[str, torch.dtype]
    offsets: dict[str, int]
    reader: Files | pickles.Pickles

    @classmethod
    def open(cls, path: Path, *, allow_pickle: bool = False) -> HfFolder:
        """Read config.json and the headers of the weights' files.

        Args:
            path: the folder.
            allow_pickle: take pytorch_model*.bin where there are no safetensors.

        Raises:
            UserError: a file is missing, truncated or not safetensors, the index and the files disagree, or a
                tensor is of a dtype other than fp32, bf16 and fp16.
        """
        path = Path(path)
        config = read_json(path / "config.json", "the model's configuration", "give a folder in Hugging Face format")
        if not isinstance(config, dict):
            raise UserError(f"{path / 'config.json'}: no JSON object; give a folder in Hugging Face format.")
        config = completed(config)
        pickled = allow_pickle and not any((path / name).exists() for name in (SINGLE, INDEX))
        single, index_name = (pickles.SINGLE, pickles.INDEX) if pickled else (SINGLE, INDEX)
        index = _read_index(path, single, index_name)
        folder = cls(path, config, {}, {}, {}, {}, pickles.Pickles() if pickled else Files())
        for name in [single] if index is None else sorted(set(index.values())):
            folder._take(path / name)
        if index is not None:
            _compare(path / index_name, index, folder.files)
        return folder

    def _take(self, file: Path) -> None:
        """Add the tensors of a file."""
        for tensor, (shape, dtype, offset) in self._header(file).items():
            if tensor in self.files:
                raise UserError(
                    f"{self.files[tensor]} and {file} both hold {tensor}; remove one of them, or copy the model again."
                )
            self.files[tensor], self.shapes[tensor] = file, shape
            self.dtypes[tensor], self.offsets[tensor] = dtype, offset

    def _header(self, path: Path) -> dict[str, tuple[Shape, torch.dtype, int]]:
        return self.reader.header(path) if isinstance(self.reader, pickles.Pickles) else read_header(path)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor, as stored, on the CPU; they hold until the thread's next call."""
        if isinstance(self.reader, pickles.Pickles):
            return self.reader.tensor(self.files[name], name)[start:stop]
        tail, dtype = self.shapes[name][1:], self.dtypes[name]
        offset = self.offsets[name] + start * math.prod(tail) * dtype.itemsize
        return self.reader.read(self.files[name], offset, dtype, (stop - start, *tail))


def _read_index(path: Path, single: str, index_name: str) -> dict[str, str] | None:
    """The weight map, or None for a model in a single file."""
    if not (path / index_name).exists():
        if (path / single).exists():
            return None
        pickled = list(path.glob("*.bin")) and single == SINGLE
        hint = "save the model as safetensors, or give --allow-pickle" if pickled else "download or copy it"
        raise UserError(f"{path / single} is missing, and so is {index_name}; {hint}.")
    mend = "download or copy it again"
    index = read_json(path / index_name, "the index of the weights' files", mend)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path / index_name}: weight_map is missing or empty; {mend}.")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise UserError(f"{path / index_name}: the entry of {name} is {file!r}, no file; {mend}.")
        if file != Path(file).name or file == ".." or "\0" in file:  # a folder, or a way out of this one
            raise UserError(
                f"{path / index_name}: the entry of {name} is {file!r}, no plain file name beside the index; {mend}."
            )
    if (path / single).exists() and set(weight_map.values()) != {single}:
        raise UserError(
            f"{path} holds {single} and {index_name}, whose files are others "
            f"({listing(sorted(set(weight_map.values())))}); loaders disagree which of the two models it is, so remove "
            "one."
        )
    return weight_map


def _compare(path: Path, index: dict[str, str], files: dict[str, Path]) -> None:
    """Refuse an index that says otherwise than the files."""
    for tensor, file in files.items():
        if index.get(tensor) != file.name:
            raise UserError(f"{path}: the entry of {tensor}, which {file.name} holds, is missing or wrong.")
    absent = [tensor for tensor in index if tensor not in files]
    if absent:
        held = path.parent / index[absent[0]]
        raise UserError(f"{held} lacks {listing(absent)}, which {path.name} says it holds; download or copy it again.")


def runs(sizes: dict[str, int], largest: int) -> list[list[str]]:
    """Cut a list of tensors into runs of at most `largest` bytes; a larger tensor is a run of its own."""
    found: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if found[-1] and used + size > largest:
            found.append([])
            used = 0
        found[-1].append(name)
        used += size
    return found


def plan_shards(sizes: dict[str, int], largest: int) -> dict[str, list[str]]:
    """Cut a list of tensors into files of at most `largest` bytes; a larger tensor gets one of its own.

    Returns:
        File name, as transformers gives it -> names of tensors.
    """
    shards = runs(sizes, largest)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    return dict(zip(names, shards, strict=True))


def write_index(folder: Path, shards: dict[str, list[str]], total_size: int) -> None:
    """Write the index, if there is more than one file."""
    if len(shards) == 1:
        return
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def matching(source: Path, patterns: Iterable[str]) -> list[Path]:
    """What matches in a folder, in order."""
    return sorted({path for pattern in patterns for path in source.glob(pattern)})


def copy_files(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy what matches from one folder to another, folders whole."""
    for path in matching(source, patterns):
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target / path.name)


def own_tokenizer_fingerprint(path: Path) -> str:
    """Fingerprint of the tokenizer in this folder, or "" where there is none."""
    return tokenizer_fingerprint(path) if (Path(path) / "tokenizer.json").is_file() else ""
