"""The mean of several checkpoints of one model, by rows: nothing is held but the rows in hand.

Rows are added in fp64, in the order given, and divided once; the result is rounded once, to the dtype that is
exported. A single checkpoint passes unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.formats.torch_dist import Reader
from megatron_ultralong.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mean:
    """Reads the mean of checkpoints, as `stream.Fused`.

    Attributes:
        readers: the checkpoints; the first one's dtypes count.
    """

    readers: tuple[Reader, ...]

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
        UserError: one can't be read, or they are of different models, ropes or tokenizers.
    """
    readers = tuple(Reader(folder, checked) for folder in folders)
    first = Description.read(folders[0])
    for folder in folders:
        other = Description.read(folder)
        if damage := other.damage(folder):
            raise UserError(f"{damage}; copy the checkpoint again.")
        for name in ("hf_config", "rope", "tokenizer_fingerprint"):
            if getattr(other, name) != getattr(first, name):
                raise UserError(f"{folder}: its {name} is not that of {folders[0]}; average checkpoints of one model.")
    return Mean(readers)
