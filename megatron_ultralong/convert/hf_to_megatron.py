"""Hugging Face -> Megatron: safetensors into a dist_checkpointing directory that any layout can load.

No model is built: the name table says where each row goes, and the layer axis is prepended as megatron-core's
TransformerBlock does for layers that are alike. The vocabulary is stored unpadded; a model padded for tensor
parallelism loads it all the same, since megatron-core marks the embedding and the output layer
allow_shape_mismatch. Cost: every byte is read and written once, and read again by the check; memory is a few
megabytes beside Python and PyTorch themselves, whatever the model.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from pathlib import Path
from typing import Literal

import torch

from megatron_ultralong import provenance
from megatron_ultralong.checkpoint.description import Description, sizes
from megatron_ultralong.convert.conversion_plan import import_plan
from megatron_ultralong.convert.formats.hf_folder import HfFolder, own_tokenizer_fingerprint
from megatron_ultralong.convert.formats.row_stream import Tally, cut, fuse
from megatron_ultralong.convert.formats.torch_dist import (
    FILES,
    Reader,
    Stored,
    TensorChunk,
    write_chunks,
    write_metadata,
)
from megatron_ultralong.convert.output import (
    TORCH_DTYPES,
    Dtype,
    check_counts,
    check_text,
    precision_name,
    refuse_existing,
    refuse_loss,
    warn_not_finite,
    writing,
)
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.convert.proof.checksums import check_megatron
from megatron_ultralong.convert.proof.logits import Verification, verify_logits
from megatron_ultralong.convert.workers import share
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.rules import Rule
from megatron_ultralong.families.tables import EMBEDDING, OUTPUT
from megatron_ultralong.progress import Progress
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.scaling import RopeScaling

logger = logging.getLogger(__name__)


def convert_hf_to_megatron(
    *,
    hf: Path,
    output: Path,
    dtype: Dtype = "keep",
    original_length: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    verify: Literal["checksums", "logits", "none"] = "checksums",
    verify_text: Path | None = None,
    verify_length: int = 2048,
    allow_pickle: bool = False,
    dry_run: bool = False,
) -> None:
    """Convert a model in Hugging Face format into a Megatron checkpoint (step 0).

    Args:
        hf: folder with config.json and safetensors.
        output: folder to write; it appears whole or not at all.
        dtype: of the stored weights; "keep" as they are in the file.
        original_length: tokens of context before its rope was scaled, where config.json leaves that open.
        workers: processes that share the work; the result is the same, bit for bit.
        overwrite: replace OUTPUT if it exists and holds nothing but a checkpoint.
        verify: "checksums" reads the result back and compares every tensor's checksum with the source's; "logits"
            also runs transformers and Megatron over the same tokens, in fp32 (4 bytes a parameter), and names the
            tensor at which they part.
        verify_text: text to compare logits on; by default random token ids.
        verify_length: tokens to compare logits on at most; 0: the model's whole context.
        allow_pickle: take pytorch_model*.bin (read with weights_only) where there are no safetensors.
        dry_run: say what would be written, and write nothing.

    Raises:
        UserError: anything wrong with the input, or OUTPUT exists.
    """
    refuse_loss(output, hf)
    refuse_existing(output, overwrite, FILES)
    check_counts(workers=workers, verify_length=verify_length, original_length=original_length)
    check_text(verify_text, verify)
    work = _Import.plan(HfFolder.open(hf, allow_pickle=allow_pickle), TORCH_DTYPES.get(dtype), original_length)
    if dry_run:
        logger.info("%s", import_plan(work.source, work.table, work.rope, work.dtypes, output))
        return
    _check_tie(work.source, work.table)
    with writing(output, work.size) as folder:
        tally = _write(dataclasses.replace(work, folder=folder), workers)
        if verify != "none":
            check_megatron(Reader(folder), work.table, tally.checksums, workers)
        if verify == "logits":
            verify_logits(Verification(hf, folder, verify_text, verify_length, dtype=TORCH_DTYPES.get(dtype)))
    logger.info("%s: %d tensors, %s, rope %s", output, len(tally.checksums), work.precision, work.rope.kind)


@dataclasses.dataclass(frozen=True)
class _Import:
    """What becomes of a model; called, it writes one .distcp file: the pieces of one group of the table."""

    folder: Path
    source: HfFolder
    table: Table
    rope: RopeScaling
    dtypes: dict[str, torch.dtype]

    @classmethod
    def plan(cls, source: HfFolder, dtype: torch.dtype | None, original_length: int) -> _Import:
        """The table, the rope and the dtypes of a folder, which must fit each other and the tensors."""
        table = Table.from_hf(source.config)
        rope = config_json.read(source.config, original_length)
        rope.inverse_frequencies(rope.rotary_dim(table.dimensions.H))  # its lists must fit the heads
        table.check_hf(source.shapes, str(source.path))
        dtypes = {rule.megatron: dtype or _common_dtype(source, rule, table) for rule in table.rules}
        return cls(Path(), source, table, rope, dtypes)

    @property
    def size(self) -> int:
        """Bytes of tensors."""
        return sum(math.prod(shape) * self.dtypes[key].itemsize for key, shape in self.table.megatron_shapes.items())

    @property
    def precision(self) -> str:
        """The name of the dtype that all tensors have, or "mixed"."""
        return precision_name(self.dtypes.values())

    def __call__(self, number: int) -> tuple[list[Stored], Tally]:
        tally = Tally()
        pieces = [
            (
                self._piece(rule, layer),
                fuse(self.source, rule, layer, self.table.dimensions, self.dtypes[rule.megatron], tally),
            )
            for rule, layer in self.table.groups()[number]
        ]
        return write_chunks(self.folder / f"__{number}_0.distcp", pieces), tally

    def _piece(self, rule: Rule, layer: int) -> TensorChunk:
        shape = self.table.megatron_shapes[rule.megatron]
        return TensorChunk(rule.megatron, shape, layer if rule.layered else None, self.dtypes[rule.megatron])


def _write(work: _Import, workers: int) -> Tally:
    """Write every tensor, the description of where each lies, and ultralong.json."""
    tally, stored = Tally(), []
    jobs = range(len(work.table.groups()))
    with Progress("converting", len(work.table.hf_shapes), "tensors") as progress:
        for places, found in share(work, jobs, workers):
            stored += places
            tally.update(found)
            progress.advance(len(found.checksums))
    write_metadata(work.folder, stored)
    warn_not_finite(work.source.path, tally)
    source = {"source": str(work.source.path.resolve()), "precision": work.precision}
    Description(
        hf_config=work.source.config,
        rope=work.rope,
        tokenizer_fingerprint=own_tokenizer_fingerprint(work.source.path),
        step=0,
        run={**source, "versions": provenance.versions()},
        files=sizes(work.folder),
    ).write(work.folder)
    return tally


def _common_dtype(source: HfFolder, rule: Rule, table: Table) -> torch.dtype:
    """The one dtype of a rule's tensors in every layer; where they differ, the one that holds them all."""
    layers = range(table.dimensions.layers if rule.layered else 1)
    return functools.reduce(
        torch.promote_types, (source.dtypes[name] for layer in layers for name in rule.names(layer))
    )


def _check_tie(source: HfFolder, table: Table) -> None:
    """With tied embeddings, a stored lm_head.weight must be the embedding again."""
    head, embedding = OUTPUT.hf[0], EMBEDDING.hf[0]
    if not table.tied or head not in source.files:
        return
    tally, (rows, *tail) = Tally(), source.shapes[embedding]
    for name in (head, embedding):
        for start, stop in cut(rows, math.prod(tail) * 4):
            tally.add(name, source.rows(name, start, stop).float())
    if tally.checksums[head] != tally.checksums[embedding] or source.shapes[head] != source.shapes[embedding]:
        raise UserError(
            f"{source.files[head]}: {head} differs from {embedding}, but config.json says tie_word_embeddings; "
            "set it to false if the model has an output layer of its own."
        )
