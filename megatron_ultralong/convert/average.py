"""The mean of several checkpoints of one model, by rows: nothing is held but the rows in hand.

Rows are added in fp64, in the order given, and divided once; the result is rounded once, to the dtype that is
exported. A single checkpoint passes unchanged.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.formats.row_stream import Files
from megatron_ultralong.convert.formats.torch_dist import Reader
from megatron_ultralong.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mean:
    """Reads the mean of checkpoints, as `stream.Fused`.

    Attributes:
        readers: the checkpoints; the first one's dtypes count.
    """

    readers: tuple[Reader, ...]

    @classmethod
    def of(cls, folders: Sequence[Path], checked: bool) -> Mean:
        """Open the checkpoints; the files of all of them count as one reader's, of which few are open at once."""
        files = Files()
        return cls(tuple(Reader(folder, checked, files) for folder in folders))

    def __reduce__(self) -> tuple[Callable[..., Mean], tuple[Any, ...]]:
        return Mean.of, ([reader.folder for reader in self.readers], self.readers[0].checked)

    def dtype(self, key: str) -> torch.dtype:
        """The stored dtype of a tensor in the first checkpoint."""
        return self.readers[0].dtype(key)

    def rows(self, key: str, start: int, stop: int, layer: int | None = None) -> torch.Tensor:
        """As `Reader.rows`; fp64 where there are several checkpoints."""
        if len(self.readers) == 1:
            return self.readers[0].rows(key, start, stop, layer)
        total = self.readers[0].rows(key, start, stop, layer).double()
        for reader in self.readers[1:]:
            total += reader.rows(key, start, stop, layer)
        return total / len(self.readers)


def open_mean(folders: Sequence[Path], checked: bool) -> Mean:
    """Open checkpoints of one model.

    Args:
        folders: of the checkpoints.
        checked: compare what is read with the checksums that the files hold.

    Raises:
        UserError: one can't be read, is given twice, or they are of different models, ropes or tokenizers.
    """
    _refuse_twice(folders)
    mean = Mean.of(folders, checked)
    first = Description.read(folders[0])
    for folder in folders:
        other = Description.read(folder)
        if damage := other.damage(folder):
            raise UserError(f"{damage}; copy the checkpoint again.")
        for name in ("hf_config", "rope", "tokenizer_fingerprint"):
            if getattr(other, name) != getattr(first, name):
                raise UserError(f"{folder}: its {name} is not that of {folders[0]}; average checkpoints of one model.")
    return mean


def _refuse_twice(folders: Sequence[Path]) -> None:
    """Raise UserError if two names are of one folder: it would count twice in the mean."""
    seen: dict[tuple[int, int], Path] = {}
    for folder in filter(os.path.isdir, folders):
        found = os.stat(folder)  # follows links, and knows a folder that is mounted twice
        if other := seen.get((found.st_dev, found.st_ino)):
            raise UserError(f"{folder} and {other} are one folder; name each checkpoint of --average once.")
        seen[found.st_dev, found.st_ino] = folder
