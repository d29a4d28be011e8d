"""In which order texts are read, so that what they begin with alike is read once.

One path of the tree of all beginnings is cached at a time; in order of their ids, neighbours share the most.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer]
_BLOCK = 1 << 20


def reading_order(texts: Sequence[Ids], groups: Sequence[str]) -> list[int]:
    """Indices of the texts: groups as they first appear, the texts of a group ("" is none) by their ids."""
    members: dict[tuple[str, int], list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault((group, -1 if group else index), []).append(index)

    def compare(one: int, other: int) -> int:
        first, second = texts[one], texts[other]
        at = common(first, second)
        if at == min(len(first), len(second)):
            return len(first) - len(second)
        return int(first[at]) - int(second[at])

    return [index for indices in members.values() for index in sorted(indices, key=functools.cmp_to_key(compare))]


def common(one: Ids, other: Ids) -> int:
    """Ids with which both begin."""
    length = min(len(one), len(other))
    for first in range(0, length, _BLOCK):
        last = min(first + _BLOCK, length)
        differ = one[first:last] != other[first:last]
        if differ.any():
            return first + int(differ.argmax())
    return length
