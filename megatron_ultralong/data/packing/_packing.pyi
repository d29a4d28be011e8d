"""Types of the C++ kernels (csrc/packing.cpp); what they do is specified by data/packing/specification.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
INTERFACE: int

def build_sample_index(
    lengths: npt.NDArray[np.int32], document_ids: Ints, separator_length: int, sequence_length: int, keep_last: bool
) -> tuple[Ints, int]: ...
def best_fit(lengths: npt.NDArray[np.int32], document_ids: Ints, capacity: int, longest: int) -> tuple[Ints, Ints]: ...
def gather(
    tokens: npt.NDArray[Any],
    offsets: Ints,
    lengths: npt.NDArray[np.int32],
    document_ids: Ints,
    separator: Ints,
    fill: int,
    position: int,
    offset: int,
    last: int,
    longest: int,
    count: int,
    spans: Sequence[tuple[int, int]],
) -> tuple[Ints, Ints, Ints]: ...
def positions(bounds: Ints, spans: Sequence[tuple[int, int]]) -> Ints: ...
def permutation(count: int, key: int) -> Ints: ...
def blend(weights: Sequence[float], drawn: Sequence[int], count: int) -> tuple[npt.NDArray[np.int32], list[int]]: ...
