"""Megatron -> Hugging Face: a checkpoint of any layout into a folder that transformers and vLLM load as it is.

Only model tensors are read; optimizer state may be there or not. The folder gets sharded safetensors, config.json
with the rope that was trained, generation_config.json, and the tokenizer with its chat templates. Cost: every
byte is read and written once, and read again by the check; memory is a few megabytes beside Python and PyTorch
themselves, whatever the model.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.average import Mean, open_mean
from megatron_ultralong.convert.companions import COMPANIONS, Companions
from megatron_ultralong.convert.conversion_plan import export_plan
from megatron_ultralong.convert.folding import QueryFold
from megatron_ultralong.convert.formats.hf_folder import (
    INDEX,
    RUN,
    HfFolder,
    plan_shards,
    runs,
    write_index,
)
from megatron_ultralong.convert.formats.row_stream import Tally, unfuse
from megatron_ultralong.convert.formats.safetensors_file import Writer
from megatron_ultralong.convert.hf_config import exported
from megatron_ultralong.convert.output import (
    TORCH_DTYPES,
    Dtype,
    check_counts,
    check_text,
    refuse_existing,
    refuse_loss,
    warn_not_finite,
    writing,
)
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.convert.proof.checksums import check_hf
from megatron_ultralong.convert.proof.logits import Verification, verify_logits
from megatron_ultralong.convert.workers import share
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.rules import Rule
from megatron_ultralong.families.tables import EMBEDDING
from megatron_ultralong.files import write_json
from megatron_ultralong.progress import Progress

logger = logging.getLogger(__name__)


def convert_megatron_to_hf(
    *,
    load: Path,
    output: Path,
    hf: Path | None = None,
    average: tuple[Path, ...] = (),
    dtype: Dtype = "keep",
    max_shard_size: float = 5.0,
    workers: int = 1,
    overwrite: bool = False,
    verify: Literal["checksums", "logits", "none"] = "checksums",
    verify_text: Path | None = None,
    verify_length: int = 2048,
    dry_run: bool = False,
) -> None:
    """Convert a Megatron checkpoint into a model in Hugging Face format.

    Args:
        load: the checkpoint: a folder that tools/convert_hf_to_megatron.py or a training run (step_N) wrote.
        output: folder to write; it appears whole or not at all.
        hf: folder to take the tokenizer and generation_config.json from; by default the one LOAD names.
        average: more checkpoints of the same model; every weight is the mean of LOAD's and theirs, in fp64.
        dtype: of the exported weights; "keep" as they are in the checkpoint.
        max_shard_size: gigabytes (1e9 bytes) a safetensors file.
        workers: processes that share the work; the result is the same, bit for bit.
        overwrite: replace OUTPUT if it exists and holds nothing but a model.
        verify: "checksums" reads the result back and compares every checksum; "logits" also runs transformers and
            Megatron over the same tokens, in fp32, and names the tensor at which they part.
            OUTPUT/verification.json holds what was found.
        verify_text: text to compare logits on; by default random token ids.
        verify_length: tokens to compare logits on at most; 0: the model's whole context.
        dry_run: say what would be written, and write nothing.

    Raises:
        UserError: anything wrong with the input, or OUTPUT exists.
    """
    _check_options(output, [load, *average], verify, verify_text, max_shard_size)
    refuse_existing(output, overwrite, (*COMPANIONS, "config.json", "verification.json", "*.safetensors", INDEX))
    check_counts(workers=workers, verify_length=verify_length)
    export = _Export.plan([load, *average], verify != "none", TORCH_DTYPES.get(dtype), round(max_shard_size * 1e9))
    companions = Companions.of(hf, Description.read(load))
    refuse_loss(output, companions.folder)
    if dry_run:
        logger.info("%s", export_plan(*export.described(), companions.files(), output))
        return
    with writing(output, sum(export.file_sizes().values())) as folder:
        export = dataclasses.replace(export, folder=folder)
        tally = _write(export, companions, workers)
        _prove(export, tally, verify, Verification(folder, load, verify_text, verify_length, True), workers)
    logger.info("%s: %d tensors, %d tokens of context", output, len(tally.checksums), companions.length)


def _check_options(
    output: Path, sources: list[Path], verify: str, verify_text: Path | None, max_shard_size: float
) -> None:
    """Refuse options that cannot be meant."""
    refuse_loss(output, *sources)
    check_text(verify_text, verify)
    if not 0 < max_shard_size < math.inf:
        raise UserError(f"--max-shard-size is {max_shard_size}; give gigabytes above 0.")
    if len(sources) > 1 and verify == "logits":
        raise UserError("--verify logits compares with one checkpoint; with --average, take --verify checksums.")


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A Hugging Face tensor, the rule it comes from, and as which part of it."""

    rule: Rule
    layer: int
    part: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Export:
    """Writes some tensors of one safetensors file."""

    folder: Path
    source: Mean
    table: Table
    config: dict[str, Any]
    fold: QueryFold
    dtype: torch.dtype | None
    tensors: dict[str, _Tensor]
    shards: dict[str, list[str]]

    @classmethod
    def plan(cls, folders: list[Path], checked: bool, dtype: torch.dtype | None, largest: int) -> _Export:
        """Which tensor goes into which file, in the order of the forward pass; every checkpoint must have them all."""
        source, description = open_mean(folders, checked), Description.read(folders[0])
        table = Table.from_hf(description.hf_config)
        for reader in source.readers:
            table.check_megatron(reader.shapes(), str(reader.folder))
        tensors = {
            name: _Tensor(rule, layer, part, table.hf_shapes[name], dtype or source.dtype(rule.megatron))
            for rule, layer in table.pieces()
            for part, name in enumerate(rule.names(layer))
        }
        shards = plan_shards({name: tensor.size for name, tensor in tensors.items()}, largest)
        config = exported(description, tensors[EMBEDDING.hf[0]].dtype)
        return cls(Path(), source, table, config, QueryFold.of(description, table), dtype, tensors, shards)

    def described(self) -> tuple[Mean, Table, dict[str, Any], dict[str, int]]:
        """What `export_plan` says of it."""
        return self.source, self.table, self.config, self.file_sizes()

    def file_sizes(self) -> dict[str, int]:
        """Bytes of tensors by file."""
        return {file: sum(self.tensors[name].size for name in names) for file, names in self.shards.items()}

    def jobs(self) -> list[tuple[str, list[str]]]:
        """What is written at once: a file, and names of tensors that lie together in it."""
        sizes = {name: tensor.size for name, tensor in self.tensors.items()}
        return [
            (file, run)
            for file, names in self.shards.items()
            for run in runs({name: sizes[name] for name in names}, RUN)
        ]

    def __call__(self, job: tuple[str, list[str]]) -> Tally:
        tally, (file, names) = Tally(), job
        header = {name: (self.tensors[name].shape, self.tensors[name].dtype) for name in self.shards[file]}
        with Writer(self.folder / file, header) as out:
            for name in names:
                t = self.tensors[name]
                scale = self.fold.scale(t.rule, t.part, self.table.dimensions)
                for block in unfuse(self.source, t.rule, t.layer, t.part, self.table.dimensions, t.dtype, tally, scale):
                    out.add(name, block)
        return tally


def _write(export: _Export, companions: Companions, workers: int) -> Tally:
    """Write every file of weights, the index, config.json, and what comes along."""
    if export.fold.factor != 1.0:
        exact = export.tensors[EMBEDDING.hf[0]].dtype == torch.float32
        logger.info(
            "config.json has no place for this rope's temperature: its %.6g is folded into the queries' weights%s",
            export.fold.factor,
            "" if exact else ", rounded once (--dtype fp32 keeps it exact)",
        )
    tally = Tally()
    with Progress("converting", len(export.tensors), "tensors") as progress:
        for found in share(export, export.jobs(), workers):
            tally.update(found)
            progress.advance(len(found.checksums))
    write_index(export.folder, export.shards, sum(export.file_sizes().values()))
    warn_not_finite(export.source.readers[0].folder, tally)
    write_json(export.folder / "config.json", export.config)
    companions.write(export.folder)
    return tally


def _prove(export: _Export, tally: Tally, verify: str, what: Verification, workers: int) -> None:
    """Check what was written as `verify` says, and write down what was found."""
    if verify == "none":
        return
    check_hf(HfFolder.open(export.folder), export.table, tally.checksums, workers)
    found: dict[str, Any] = {
        "tensors": len(tally.checksums),
        "crc32": tally.checksums,
        "query_scale": export.fold.factor,
    }
    if len(export.source.readers) > 1:
        found["averaged"] = [str(reader.folder.resolve()) for reader in export.source.readers]
    if verify == "logits":
        found |= verify_logits(dataclasses.replace(what, dtype=export.dtype))
    write_json(export.folder / "verification.json", found)
