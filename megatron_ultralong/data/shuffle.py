"""Seeds for shuffles: one 64-bit key for each use of a run's seed, so that no two uses share their randomness."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.packing import _packing


def key(seed: int, *use: str | int) -> int:
    """Hash the seed and what it is used for, such as ("epoch", 3), into 64 bits (SHA-256)."""
    return int.from_bytes(hashlib.sha256(repr((seed, *use)).encode()).digest()[:8], "little")


def shuffled(values: npt.NDArray[np.int64], seed: int, *use: str | int) -> npt.NDArray[np.int64]:
    """A shuffled copy of `values`, int64 [n]: the same for the same seed on every machine and library version."""
    return values[_packing.permutation(len(values), key(seed, *use))]
