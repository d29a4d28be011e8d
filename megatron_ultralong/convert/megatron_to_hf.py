"""Megatron -> Hugging Face: a checkpoint of any layout into a folder that transformers and vLLM load as it is.

Only model tensors are read; optimizer state may be there or not. The folder gets sharded safetensors, config.json
with the rope that was trained, generation_config.json, and the tokenizer with its chat templates. Cost: every
byte is read and written once, and read again by the check; memory is one shard.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_ultralong.convert.families import EMBEDDING
from megatron_ultralong.convert.folding import QueryFold
from megatron_ultralong.convert.hf_config import with_dtype, with_rope
from megatron_ultralong.convert.hf_to_megatron import TORCH_DTYPES, Dtype, refuse_existing
from megatron_ultralong.convert.huggingface import (
    TOKENIZER_FILES,
    HfFolder,
    ShardWriter,
    copy_files,
    own_tokenizer_fingerprint,
)
from megatron_ultralong.convert.logits import compare_logits, verification_tokens
from megatron_ultralong.convert.table import Table, listing
from megatron_ultralong.convert.torch_dist import Reader
from megatron_ultralong.convert.verify import check_hf, checksum, hf_tensors
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_directory, read_json, write_json
from megatron_ultralong.model.description import Description
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
    verify: Literal["checksums", "logits", "none"] = "checksums",
    verify_text: Path | None = None,
    verify_length: int = 0,
) -> None:
    """Convert a Megatron checkpoint into a model in Hugging Face format.

    Args:
        load: the checkpoint: a folder that tools/convert_hf_to_megatron.py or a training run (step_N) wrote.
        output: folder to write; it appears whole or not at all.
        hf: folder to take the tokenizer and generation_config.json from; by default the one LOAD names.
        dtype: of the exported weights; "keep" as they are in the checkpoint.
        max_shard_size: gigabytes (1e9 bytes) a safetensors file.
        overwrite: replace OUTPUT if it exists.
        verify: "checksums" reads the result back and compares every tensor's checksum with the checkpoint's;
            "logits" also runs transformers and Megatron over the same tokens, in fp32 (4 bytes a parameter).
            OUTPUT/verification.json holds what was found.
        verify_text: text to compare logits on; by default random token ids.
        verify_length: tokens to compare logits on at most; 0: the model's whole context.

    Raises:
        UserError: anything wrong with the input, or OUTPUT exists.
    """
    refuse_existing(output, overwrite)
    reader = Reader(load)
    description = Description.read(load)
    table = Table.from_hf(description.hf_config)
    table.check_megatron(reader.shapes(), str(load))
    source = _source(hf, description)
    dtypes = {
        name: TORCH_DTYPES.get(dtype, reader.tensors[rule.megatron].properties.dtype)
        for rule, layer in table.pieces()
        for name in rule.names(layer)
    }
    config = with_rope(description.hf_config, description.rope)
    config = with_dtype(config, dtypes[EMBEDDING.hf[0]])
    length = description.rope.length
    with atomic_directory(output) as folder:
        fold = QueryFold.of(description, table)
        checksums = _write_weights(folder, reader, table, dtypes, round(max_shard_size * 1e9), fold)
        write_json(folder / "config.json", config)
        _write_companions(folder, source, length)
        if verify != "none":
            check_hf(HfFolder.open(folder), table, checksums)
            found: dict[str, Any] = {"tensors": len(checksums), "crc32": checksums, "query_scale": fold.factor}
            if verify == "logits":
                found |= _verify_logits(folder, load, verify_length or length, verify_text)
            write_json(folder / "verification.json", found)
    logger.info("%s: %d tensors, %s, %d tokens of context", output, len(checksums), config["torch_dtype"], length)


def _verify_logits(folder: Path, load: Path, length: int, text: Path | None) -> dict[str, Any]:
    """Compare logits and say what came out; returns the entries for verification.json."""
    tokens = verification_tokens(folder, length, text)
    found = compare_logits(hf=folder, load=load, tokens_S=tokens)
    logger.info(
        "logits of transformers and Megatron over %d tokens: max abs diff %.3g (largest logit %.3g)",
        found.tokens,
        found.max_abs_diff,
        found.max_abs,
    )
    return {
        "hf_logits_max_abs_diff": found.max_abs_diff,
        "hf_logits_max_abs": found.max_abs,
        "tokens": found.tokens,
        "text": None if text is None else str(text),
    }


def _source(hf: Path | None, description: Description) -> Path:
    """The folder of tokenizer and generation_config.json; its tokenizer must be the one the model was trained with."""
    run = description.run  # a converter's has `source`, a training run's the model section of its configuration
    named = hf or run.get("source") or run.get("model", {}).get("hf")
    if named is None or not Path(named).is_dir():
        raise UserError(f"{named}, to take the tokenizer from, is no folder; give --hf FOLDER.")
    folder = Path(named)
    found = own_tokenizer_fingerprint(folder)
    if description.tokenizer_fingerprint and found != description.tokenizer_fingerprint:
        raise UserError(
            f"{folder / 'tokenizer.json'} is not the tokenizer of this checkpoint; give --hf FOLDER with it."
        )
    return folder


def _write_weights(
    folder: Path, reader: Reader, table: Table, dtypes: dict[str, torch.dtype], largest: int, fold: QueryFold
) -> dict[str, int]:
    """Write every tensor; returns name -> checksum, as written."""
    if fold.factor != 1.0:
        logger.info(
            "config.json has no place for this rope's temperature: its %.6g is folded into the queries' weights%s",
            fold.factor,
            "" if dtypes[EMBEDDING.hf[0]] == torch.float32 else ", rounded once (--dtype fp32 keeps it exact)",
        )
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in table.hf_shapes.items()}
    writer = ShardWriter(folder, sizes, largest)
    checksums: dict[str, int] = {}
    not_finite: list[str] = []
    for name, stored in track(hf_tensors(reader, table, fold), "writing", "tensors", len(sizes)):
        tensor = stored.to(dtypes[name])
        if not torch.isfinite(tensor).all():
            not_finite.append(name)
        checksums[name] = checksum(tensor)
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
