"""Megatron -> Hugging Face: a checkpoint of any layout into a folder that transformers and vLLM load as it is.

Only model tensors are read; optimizer state may be there or not. The folder gets sharded safetensors, config.json
with the rope that was trained, generation_config.json, and the tokenizer with its chat templates. Cost: every
byte is read and written once, and read again by the check; memory is one shard.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Literal

import torch

from megatron_ultralong.convert import verify
from megatron_ultralong.convert.card import CheckpointCard
from megatron_ultralong.convert.families import EMBEDDING
from megatron_ultralong.convert.hf_config import context_length, with_dtype, with_rope
from megatron_ultralong.convert.hf_to_megatron import TORCH_DTYPES, Dtype, refuse_existing
from megatron_ultralong.convert.huggingface import (
    TOKENIZER_FILES,
    HfFolder,
    ShardWriter,
    copy_files,
    tokenizer_fingerprint,
)
from megatron_ultralong.convert.table import Table, listing
from megatron_ultralong.convert.torch_dist import Reader
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_directory, read_json, write_json
from megatron_ultralong.progress import track

logger = logging.getLogger(__name__)


def convert_megatron_to_hf(
    *,
    load: Path,
    output: Path,
    hf: Path | None = None,
    dtype: Dtype = "keep",
    max_shard_size: float = 5.0,
    overwrite: bool = False,
    check: Literal["checksums", "none"] = "checksums",
) -> None:
    """Convert a Megatron checkpoint into a model in Hugging Face format.

    Args:
        load: the checkpoint: a folder that tools/convert_hf_to_megatron.py or a training run (step_N) wrote.
        output: folder to write; it appears whole or not at all.
        hf: folder to take the tokenizer and generation_config.json from; by default the one LOAD names.
        dtype: of the exported weights; "keep" as they are in the checkpoint.
        max_shard_size: gigabytes (1e9 bytes) a safetensors file.
        overwrite: replace OUTPUT if it exists.
        check: read the result back and compare every tensor's checksum with the checkpoint's.

    Raises:
        UserError: anything wrong with the input, or OUTPUT exists.
    """
    refuse_existing(output, overwrite)
    card = CheckpointCard.read(load)
    reader = Reader(load)
    table = Table.from_hf(card.hf_config)
    table.check_megatron(reader.shapes(), str(load))
    source = _source(hf, card)
    dtypes = {
        name: TORCH_DTYPES.get(dtype, reader.tensors[rule.megatron].properties.dtype)
        for rule, layer in table.pieces()
        for name in rule.names(layer)
    }
    config = with_rope(card.hf_config, card.rope, table.dimensions.H)
    config = with_dtype(config, dtypes[EMBEDDING.hf[0]])
    length = context_length(card.hf_config, card.rope)
    with atomic_directory(output) as folder:
        checksums = _write_weights(folder, reader, table, dtypes, round(max_shard_size * 1e9))
        write_json(folder / "config.json", config)
        _write_companions(folder, source, length)
        if check == "checksums":
            verify.check_hf(HfFolder.open(folder), table, checksums)
    logger.info("%s: %d tensors, %s, %d tokens of context", output, len(checksums), config["torch_dtype"], length)


def _source(hf: Path | None, card: CheckpointCard) -> Path:
    """The folder of tokenizer and generation_config.json; its tokenizer must be the one the model was trained with."""
    folder = Path(hf or card.source)
    if not folder.is_dir():
        raise UserError(f"{folder}, to take the tokenizer from, is no folder; give --hf FOLDER.")
    found = tokenizer_fingerprint(folder)
    if card.tokenizer_fingerprint and found != card.tokenizer_fingerprint:
        raise UserError(
            f"{folder / 'tokenizer.json'} is not the tokenizer of this checkpoint; give --hf FOLDER with it."
        )
    return folder


def _write_weights(
    folder: Path, reader: Reader, table: Table, dtypes: dict[str, torch.dtype], largest: int
) -> dict[str, int]:
    """Write every tensor; returns name -> checksum, as written."""
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in table.hf_shapes.items()}
    writer = ShardWriter(folder, sizes, largest)
    checksums: dict[str, int] = {}
    not_finite: list[str] = []
    for name, stored in track(verify.hf_tensors(reader, table), "writing", "tensors", len(sizes)):
        tensor = stored.to(dtypes[name])
        if not torch.isfinite(tensor).all():
            not_finite.append(name)
        checksums[name] = verify.checksum(tensor)
        writer.add(name, tensor)
    writer.finish()
    if not_finite:
        logger.warning("%s: NaN or infinite weights in %s", reader.folder, listing(not_finite, 8))
    return checksums


def _write_companions(folder: Path, source: Path, length: int) -> None:
    """Tokenizer, chat templates and generation_config.json, with the new length as model_max_length."""
    copy_files(source, folder, (*TOKENIZER_FILES, "generation_config.json"))
    path = folder / "tokenizer_config.json"
    if path.exists():
        content = read_json(path, "the tokenizer's configuration", "mend or replace the source folder's")
        write_json(path, content | {"model_max_length": length})
