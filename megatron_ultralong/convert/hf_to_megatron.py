"""Hugging Face -> Megatron: safetensors into a dist_checkpointing directory that any layout can load.

No model is built: the name table says where each tensor goes, and the layer axis is prepended as
megatron-core's TransformerBlock does for layers that are alike. The vocabulary is stored unpadded; a model
padded for tensor parallelism loads it all the same, since megatron-core marks the embedding and the output
layer allow_shape_mismatch. Cost: every byte is read and written once, and read again by the check; memory is
one layer.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from megatron_ultralong import provenance
from megatron_ultralong.convert.families import EMBEDDING, OUTPUT
from megatron_ultralong.convert.huggingface import HfFolder, own_tokenizer_fingerprint
from megatron_ultralong.convert.rules import Rule
from megatron_ultralong.convert.table import Table, listing
from megatron_ultralong.convert.torch_dist import Piece, Reader, write
from megatron_ultralong.convert.verify import check_megatron, checksum
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_directory
from megatron_ultralong.model.description import Description
from megatron_ultralong.model.rope import RopeScaling
from megatron_ultralong.progress import Progress

logger = logging.getLogger(__name__)

Dtype = Literal["keep", "fp32", "bf16", "fp16"]
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def convert_hf_to_megatron(
    *,
    hf: Path,
    output: Path,
    dtype: Dtype = "keep",
    overwrite: bool = False,
    verify: Literal["checksums", "none"] = "checksums",
) -> None:
    """Convert a model in Hugging Face format into a Megatron checkpoint (step 0).

    Args:
        hf: folder with config.json and safetensors.
        output: folder to write; it appears whole or not at all.
        dtype: of the stored weights; "keep" as they are in the file.
        overwrite: replace OUTPUT if it exists.
        verify: read the result back and compare every tensor's checksum with the source's.

    Raises:
        UserError: anything wrong with the input, or OUTPUT exists.
    """
    refuse_existing(output, overwrite)
    source = HfFolder.open(hf)
    table = Table.from_hf(source.config)
    rope = RopeScaling.from_hf(source.config)
    table.check_hf(source.shapes, str(hf))
    _check_tie(source, table)
    with atomic_directory(output) as folder:
        intake = _Intake(source, table, TORCH_DTYPES.get(dtype))
        with intake.progress:
            write(folder, intake.groups())
        intake.warn()
        precision = precision_name(intake.dtypes.values())
        Description(
            hf_config=source.config,
            rope=rope,
            tokenizer_fingerprint=own_tokenizer_fingerprint(hf),
            step=0,
            run={"source": str(Path(hf).resolve()), "precision": precision, "versions": provenance.versions()},
        ).write(folder)
        if verify == "checksums":
            check_megatron(Reader(folder), table, intake.checksums)
    logger.info("%s: %d tensors, %s, rope %s", output, len(table.hf_shapes), precision, rope.kind)


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raise UserError if `output` exists and may not be replaced."""
    if Path(output).exists() and not overwrite:
        raise UserError(f"{output} exists; give another --output, or --overwrite to replace it.")


def precision_name(dtypes: Iterable[torch.dtype]) -> str:
    """Name the one dtype ("fp32", "bf16", "fp16") all tensors have, or "mixed"."""
    found = set(dtypes)
    names = {value: name for name, value in TORCH_DTYPES.items()}
    return names[found.pop()] if len(found) == 1 else "mixed"


class _Intake:
    """Reads, casts, checks and fuses tensors as the writer asks for them."""

    def __init__(self, source: HfFolder, table: Table, dtype: torch.dtype | None) -> None:
        self.source, self.table = source, table
        self.dtypes = {rule.megatron: dtype or _common_dtype(source, rule, table) for rule in table.rules}
        self.checksums: dict[str, int] = {}
        self.not_finite: list[str] = []
        self.progress = Progress("reading", len(table.hf_shapes), "tensors")

    def groups(self) -> list[list[Piece]]:
        """The checkpoint's pieces: the embedding, each layer, and the rest."""
        groups: dict[tuple[bool, int, bool], list[Piece]] = {}
        for rule, layer in self.table.pieces():
            groups.setdefault((rule.layered, layer, rule is EMBEDDING), []).append(self._piece(rule, layer))
        return list(groups.values())

    def _piece(self, rule: Rule, layer: int) -> Piece:
        return Piece(
            key=rule.megatron,
            shape=self.table.megatron_shapes[rule.megatron],
            layer=layer if rule.layered else None,
            dtype=self.dtypes[rule.megatron],
            make=functools.partial(self._fused, rule, layer),
        )

    def _fused(self, rule: Rule, layer: int) -> torch.Tensor:
        dtype = self.dtypes[rule.megatron]
        return rule.merge([self._read(name, dtype) for name in rule.names(layer)], self.table.dimensions)

    def _read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        tensor = self.source.read(name).to(dtype)
        if not torch.isfinite(tensor).all():
            self.not_finite.append(name)
        self.checksums[name] = checksum(tensor)
        self.progress.advance()
        return tensor

    def warn(self) -> None:
        """Say which tensors hold NaN or infinity, if any."""
        if self.not_finite:
            logger.warning("%s: NaN or infinite weights in %s", self.source.path, listing(self.not_finite, 8))


def _common_dtype(source: HfFolder, rule: Rule, table: Table) -> torch.dtype:
    """The one dtype of a rule's tensors in every layer; where they differ, the one that holds them all."""
    layers = range(table.dimensions.layers if rule.layered else 1)
    return functools.reduce(
        torch.promote_types, (source.dtypes[name] for layer in layers for name in rule.names(layer))
    )


def _check_tie(source: HfFolder, table: Table) -> None:
    """With tied embeddings, a stored lm_head.weight must be the embedding again."""
    head, embedding = OUTPUT.hf[0], EMBEDDING.hf[0]
    if table.tied and head in source.files and not torch.equal(source.read(head), source.read(embedding)):
        raise UserError(
            f"{source.files[head]}: {head} differs from {embedding}, but config.json says tie_word_embeddings; "
            "set it to false if the model has an output layer of its own."
        )
