"""What a conversion would read and write, in words: --dry-run of both tools, and where nothing else needs to run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.convert.average import Mean
from megatron_ultralong.convert.formats.hf_folder import HfFolder
from megatron_ultralong.convert.output import DTYPE_NAMES, free_space, gigabytes
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.scaling import RopeScaling


def import_plan(source: HfFolder, table: Table, rope: RopeScaling, dtypes: dict[str, torch.dtype], output: Path) -> str:
    """The plan of Hugging Face -> Megatron: every tensor, its parts, its size, and the files."""
    sizes = {key: math.prod(shape) * dtypes[key].itemsize for key, shape in table.megatron_shapes.items()}
    files = len(set(source.files.values()))
    lines = [f"{source.path} -> {output}", *_model(source.config, table, rope)]
    lines.append(f"reads {len(table.hf_shapes)} tensors of {files} file{'s' * (files > 1)}")
    for rule in table.rules:
        key = rule.megatron
        parts = " + ".join(rule.hf)
        lines.append(f"  {key}  {_shape(table.megatron_shapes[key], dtypes[key])}  {gigabytes(sizes[key])}  <- {parts}")
    lines.append(
        f"writes {len(table.groups())} .distcp files ({gigabytes(sum(sizes.values()))}), .metadata, metadata.json, "
        "common.pt, ultralong.json"
    )
    return "\n".join([*lines, _room(output, sum(sizes.values()))])


def export_plan(
    source: Mean, table: Table, config: dict[str, Any], files: dict[str, int], companions: list[Path], output: Path
) -> str:
    """The plan of Megatron -> Hugging Face: what is read, every file and its size, what comes along."""
    names = ", ".join(str(reader.folder) for reader in source.readers)
    lines = [f"{names} -> {output}", *_model(config, table, config_json.read(config))]
    mean = f", the mean of {len(source.readers)} checkpoints" if len(source.readers) > 1 else ""
    spare = len(source.readers[0].tensors) - len(table.rules)
    left = f"; leaves {spare} others (optimizer state)" if spare else ""
    lines.append(f"reads {len(table.rules)} tensors{mean}{left}")
    lines += [f"  {name}  {gigabytes(size)}" for name, size in files.items()]
    index = ["model.safetensors.index.json"] if len(files) > 1 else []
    lines.append(f"writes {', '.join(['config.json', 'verification.json', *index])}")
    lines.append(f"copies {', '.join(path.name for path in companions) or 'nothing'}")
    return "\n".join([*lines, _room(output, sum(files.values()))])


def _model(config: dict[str, Any], table: Table, rope: RopeScaling) -> Iterator[str]:
    parameters = sum(math.prod(shape) for shape in table.hf_shapes.values())
    tied = ", tied embeddings" if table.tied else ""
    yield f"{config['architectures'][0]}, {table.dimensions.layers} layers, {parameters:,} parameters{tied}"
    yield f"rope {rope.kind}, factor {rope.factor:g}, {rope.length:,} tokens"


def _shape(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"[{', '.join(map(str, shape))}] {DTYPE_NAMES[dtype]}"


def _room(output: Path, size: int) -> str:
    free = free_space(output)
    return f"takes {gigabytes(size)} of {gigabytes(free)} free" + ("" if free >= size else ": TOO LITTLE")
