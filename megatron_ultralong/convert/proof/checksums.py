"""Proof that a conversion lost nothing: what was written is read back, and every tensor's checksum compared.

Checksums are taken under Hugging Face names on both sides, so they show that nothing was lost or moved between
names; only logits (logits.py) show that the model computes the same.
"""

from __future__ import annotations

import dataclasses
import math

from megatron_ultralong.convert.formats.hf_folder import RUN, HfFolder, runs
from megatron_ultralong.convert.formats.row_stream import Tally, cut, unfuse
from megatron_ultralong.convert.formats.torch_dist import Reader
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.convert.workers import share
from megatron_ultralong.errors import UserError, listing
from megatron_ultralong.families.rules import Rule
from megatron_ultralong.progress import Progress


@dataclasses.dataclass(frozen=True)
class _MegatronCheck:
    """Tallies the tensors of one file of a Megatron checkpoint under their Hugging Face names."""

    reader: Reader
    table: Table

    def __call__(self, pieces: list[tuple[Rule, int]]) -> Tally:
        tally = Tally()
        for rule, layer in pieces:
            for part in range(len(rule.hf)):
                dtype = self.reader.dtype(rule.megatron)
                for _ in unfuse(self.reader, rule, layer, part, self.table.dimensions, dtype, tally):
                    pass
        return tally


@dataclasses.dataclass(frozen=True)
class _HfCheck:
    """Tallies some tensors of a Hugging Face folder."""

    folder: HfFolder

    def __call__(self, names: list[str]) -> Tally:
        tally = Tally()
        for name in names:
            rows, *tail = self.folder.shapes[name]
            for start, stop in cut(rows, math.prod(tail) * self.folder.dtypes[name].itemsize):
                tally.add(name, self.folder.rows(name, start, stop))
        return tally


def check_megatron(reader: Reader, table: Table, checksums: dict[str, int], workers: int = 1) -> None:
    """Compare a Megatron checkpoint with the checksums of the tensors it was made from.

    Raises:
        UserError: names, shapes or values differ.
    """
    table.check_megatron(reader.shapes(), str(reader.folder))
    found = Tally()
    with Progress("checking", len(checksums), "tensors") as progress:
        for tally in share(_MegatronCheck(reader, table), table.groups(), workers):
            found.update(tally)
            progress.advance(len(tally.checksums))
    _compare(found.checksums, checksums, str(reader.folder))


def check_hf(folder: HfFolder, table: Table, checksums: dict[str, int], workers: int = 1) -> None:
    """Compare a Hugging Face folder with the checksums of the tensors it was made from.

    Raises:
        UserError: names, shapes or values differ.
    """
    table.check_hf(folder.shapes, str(folder.path))
    sizes = {name: math.prod(shape) * folder.dtypes[name].itemsize for name, shape in folder.shapes.items()}
    found = Tally()
    with Progress("checking", len(checksums), "tensors") as progress:
        for tally in share(_HfCheck(folder), runs(sizes, RUN), workers):
            found.update(tally)
            progress.advance(len(tally.checksums))
    _compare(found.checksums, checksums, str(folder.path))


def _compare(actual: dict[str, int], expected: dict[str, int], where: str) -> None:
    wrong = [name for name in expected if actual.get(name) != expected[name]]
    if wrong:
        raise UserError(f"{where}: {listing(wrong)} read back otherwise than written; check the disk and run again.")
