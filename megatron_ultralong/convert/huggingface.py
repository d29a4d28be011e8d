"""Hugging Face folders: weights read lazily from safetensors and written in shards, and the files beside them.

Opening reads the headers only. A tensor is read when it is asked for, from a file opened for it, so memory is
that tensor. Writing holds one shard. Nothing pickled is ever opened.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megatron_ultralong.convert.rules import Shape
from megatron_ultralong.convert.table import listing
from megatron_ultralong.data.tokenizer import tokenizer_fingerprint
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates",
)
"""Patterns of what a tokenizer and its chat templates consist of."""


@dataclasses.dataclass(frozen=True)
class HfFolder:
    """A model in Hugging Face format.

    Attributes:
        path: the folder.
        config: its config.json.
        files: tensor name -> the safetensors file that holds it.
        shapes: tensor name -> shape.
        dtypes: tensor name -> dtype.
    """

    path: Path
    config: dict[str, Any]
    files: dict[str, Path]
    shapes: dict[str, Shape]
    dtypes: dict[str, torch.dtype]

    @classmethod
    def open(cls, path: Path) -> HfFolder:
        """Read config.json and the headers of the safetensors files.

        Raises:
            UserError: a file is missing, truncated or not safetensors, the index and the files disagree, or a
                tensor is of a dtype other than fp32, bf16 and fp16.
        """
        path = Path(path)
        config = read_json(path / "config.json", "the model's configuration", "give a folder in Hugging Face format")
        if not isinstance(config, dict):
            raise UserError(f"{path / 'config.json'}: no JSON object; give a folder in Hugging Face format.")
        index = _read_index(path)
        files: dict[str, Path] = {}
        shapes: dict[str, Shape] = {}
        dtypes: dict[str, torch.dtype] = {}
        for name in [SINGLE] if index is None else sorted(set(index.values())):
            for tensor, (shape, dtype) in _read_header(path / name).items():
                if index is not None and index.get(tensor) != name:
                    raise UserError(f"{path / INDEX}: the entry of {tensor}, which {name} holds, is missing or wrong.")
                files[tensor], shapes[tensor], dtypes[tensor] = path / name, shape, dtype
        absent = [tensor for tensor in index or {} if tensor not in files]
        if absent:
            held = path / (index or {})[absent[0]]
            raise UserError(f"{held} lacks {listing(absent)}, which {INDEX} says it holds; download or copy it again.")
        return cls(path, config, files, shapes, dtypes)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, as stored."""
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)


def _read_index(path: Path) -> dict[str, str] | None:
    """The weight map, or None for a model in a single file."""
    if (path / INDEX).exists():
        mend = "download or copy it again"
        index = read_json(path / INDEX, "the index of the safetensors files", mend)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{path / INDEX}: weight_map is missing or empty; {mend}.")
        return weight_map
    if (path / SINGLE).exists():
        return None
    hint = "save the model as safetensors" if list(path.glob("*.bin")) else "download or copy it"
    raise UserError(f"{path / SINGLE} is missing, and so is {INDEX}; {hint}.")


def _read_header(path: Path) -> dict[str, tuple[Shape, torch.dtype]]:
    if not path.exists():
        raise UserError(f"{path} is missing; download or copy it.")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            header = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not safetensors ({error}); download or copy it again.") from None
    for name, (_, dtype) in header.items():
        if dtype not in DTYPES:
            raise UserError(f"{path}: {name} is {dtype}; known: {', '.join(DTYPES)} (undo the quantization first).")
    return {name: (shape, DTYPES[dtype]) for name, (shape, dtype) in header.items()}


def plan_shards(sizes: dict[str, int], largest: int) -> list[list[str]]:
    """Cut a list of tensors into shards of at most `largest` bytes; a larger tensor gets a shard of its own."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > largest:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


class ShardWriter:
    """Writes tensors, given one by one in the order they were announced, into safetensors files and an index.

    Args:
        folder: an existing folder.
        sizes: tensor name -> bytes, in the order in which they will come.
        largest: bytes a shard.
    """

    def __init__(self, folder: Path, sizes: dict[str, int], largest: int) -> None:
        self.folder, self.sizes = folder, sizes
        self.shards = plan_shards(sizes, largest)
        self.current = 0
        self.held: dict[str, torch.Tensor] = {}

    def file_name(self, shard: int) -> str:
        """The name transformers gives for shard number `shard`, from 0."""
        count = len(self.shards)
        return SINGLE if count == 1 else f"model-{shard + 1:05d}-of-{count:05d}.safetensors"

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; the shard is written when its last one has come."""
        self.held[name] = tensor.clone(memory_format=torch.contiguous_format)
        if name == self.shards[self.current][-1]:
            save_file(self.held, self.folder / self.file_name(self.current), metadata={"format": "pt"})
            self.held = {}
            self.current += 1

    def finish(self) -> None:
        """Write the index, if there is more than one file."""
        assert self.current == len(self.shards), "tensors announced and never added"
        if len(self.shards) == 1:
            return
        weight_map = {name: self.file_name(number) for number, names in enumerate(self.shards) for name in names}
        index = {"metadata": {"total_size": sum(self.sizes.values())}, "weight_map": weight_map}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_files(source: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy what matches from one folder to another, folders whole."""
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target / path.name)


def own_tokenizer_fingerprint(path: Path) -> str:
    """Fingerprint of the tokenizer in this folder, or "" where there is none."""
    return tokenizer_fingerprint(path) if (Path(path) / "tokenizer.json").is_file() else ""
