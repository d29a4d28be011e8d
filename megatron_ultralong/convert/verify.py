"""Proof that a conversion lost nothing: checksums by tensor (cheap, on by default) and logits (on request).

Checksums are CRC-32 of a tensor's bytes under its Hugging Face name, on both sides: they guard against what
goes wrong on the way (a bad disk, a wrong row), not against malice. They show that nothing was lost or moved
between names; only logits show that the model computes the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import torch

from megatron_ultralong.convert.folding import QueryFold
from megatron_ultralong.convert.huggingface import HfFolder
from megatron_ultralong.convert.rules import Rule
from megatron_ultralong.convert.table import Table, listing
from megatron_ultralong.convert.torch_dist import Reader
from megatron_ultralong.errors import UserError


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of the tensor's values in memory order."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def hf_tensors(reader: Reader, table: Table, fold: QueryFold | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """A Megatron checkpoint's model tensors under their Hugging Face names, in the order of table.hf_shapes.

    Args:
        reader: the checkpoint.
        table: of its model.
        fold: a temperature to put into the queries; folded tensors come in fp32.
    """
    for rule, layer in table.pieces():
        tensor = _read(reader, rule, layer, table)
        if fold is not None:
            tensor = fold.apply(rule.megatron, tensor, table.dimensions)
        yield from zip(rule.names(layer), rule.split(tensor, table.dimensions), strict=True)


def _read(reader: Reader, rule: Rule, layer: int, table: Table) -> torch.Tensor:
    if rule.layered:
        return reader.read(rule.megatron, layer=layer)
    return reader.read(rule.megatron, rows=table.dimensions.V if rule.vocabulary else None)


def check_megatron(reader: Reader, table: Table, checksums: dict[str, int]) -> None:
    """Compare a Megatron checkpoint with the checksums of the tensors it was made from.

    Raises:
        UserError: names, shapes or values differ.
    """
    table.check_megatron(reader.shapes(), str(reader.folder))
    _compare({name: checksum(tensor) for name, tensor in hf_tensors(reader, table)}, checksums, str(reader.folder))


def check_hf(folder: HfFolder, table: Table, checksums: dict[str, int]) -> None:
    """Compare a Hugging Face folder with the checksums of the tensors it was made from.

    Raises:
        UserError: names, shapes or values differ.
    """
    table.check_hf(folder.shapes, str(folder.path))
    _compare({name: checksum(folder.read(name)) for name in folder.files}, checksums, str(folder.path))


def _compare(actual: dict[str, int], expected: dict[str, int], where: str) -> None:
    wrong = [name for name in expected if actual.get(name) != expected[name]]
    if wrong:
        raise UserError(f"{where}: {listing(wrong)} read back otherwise than written; check the disk and run again.")
