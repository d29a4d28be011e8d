"""Throw random and broken arguments at the C++ kernels: they must equal the Python specification or raise ValueError.

    python tests/fuzz/fuzz_packing.py --seconds 60 --seed 1

Every round has a seed of its own, printed when it fails; `--seed N --rounds 1` repeats it. Broken means: ids, lengths
and offsets outside their arrays, odd strides and dtypes, extreme integers. A crash is a failure too, and under
AddressSanitizer (tests/fuzz/sanitize.py) so is every read or write outside an array.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from megatron_ultralong.data.packing import _packing, specification

EXTREME = [-(2**63), -(2**31), -1, 0, 1, 2, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1]


class Round:
    """Arguments made from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        documents = self.number(1, 9)
        self.lengths = self.random.integers(0, self.number(1, 13), documents).astype(np.int32)
        self.dtype = [np.uint8, np.uint16, np.int32, np.int64][self.number(0, 4)]
        self.tokens = self.random.integers(0, 200, int(self.lengths.sum())).astype(self.dtype)
        starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.offsets = (starts * self.tokens.itemsize).astype(np.int64)
        self.ids = self.random.integers(0, documents, self.number(0, 14)).astype(np.int64)
        self.separator = self.random.integers(900, 904, self.number(0, 4)).astype(np.int64)

    def number(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high))

    def calls(self) -> list[tuple[str, list[Any]]]:
        """A call of every kernel."""
        last = self.number(0, len(self.ids) + 1)
        place = [self.number(0, last + 1), self.number(0, 8), last, [5, specification.UNLIMITED][self.number(0, 2)]]
        spans = [
            (begin, begin + self.number(0, 9)) for begin in self.random.integers(0, 25, self.number(0, 4)).tolist()
        ]
        weights = self.random.random(self.number(1, 5)) + 0.01
        drawn = self.random.integers(0, 9, len(weights)).tolist()
        steps = self.random.integers(0, 9, self.number(0, 7))
        shuffled = self.number(0, 300)
        return [
            ("build_sample_index", [self.lengths, self.ids, len(self.separator), self.number(1, 10), bool(last % 2)]),
            ("best_fit", [self.lengths, self.ids, self.number(1, 15), place[3]]),
            ("gather", [self.tokens, self.offsets, self.lengths, self.ids, self.separator, -7, *place, last, spans]),
            ("positions", [np.cumsum([0, *steps]).astype(np.int64), spans]),
            ("permutation", [shuffled, int(self.random.integers(0, 2**64, dtype=np.uint64))]),
            ("blend", [(weights / weights.sum()).tolist(), drawn, self.number(0, 40)]),
        ]

    def broken(self, arguments: list[Any]) -> list[Any]:
        """The same with one argument made wrong."""
        changed = list(arguments)
        place = self.number(0, len(changed))
        changed[place] = self.broken_value(changed[place])
        return changed

    def broken_value(self, value: Any) -> Any:
        extreme = EXTREME[self.number(0, len(EXTREME))]
        if isinstance(value, np.ndarray):
            array = value.copy()
            kind = self.number(0, 5)
            if kind == 0 and len(array):
                limits = np.iinfo(array.dtype)
                extreme = (
                    min(extreme, 2**16) if array.dtype == np.int32 else extreme
                )  # 2^31 tokens are no error, but many rows
                array[self.number(0, len(array))] = min(max(extreme, limits.min), limits.max)
            elif kind == 1:
                array = array[: self.number(0, len(array) + 1)]
            elif kind == 2:
                array = array.astype([np.float32, np.int16, np.uint32][self.number(0, 3)])
            elif kind == 3:
                array = np.repeat(array, 2)[::2]
            else:
                array = array.reshape(1, -1)
            return array
        if isinstance(value, bool):
            return value
        if isinstance(value, list):
            if value and isinstance(value[0], tuple):
                return [(extreme, extreme), *value]
            return value[:-1] if self.number(0, 2) else [*value, 1]
        # A count of things to make is not made extreme: 2^62 of them is no error, only more than any memory.
        return -1 if isinstance(value, int) and self.number(0, 2) else min(extreme, 2**20) if value >= 0 else extreme


def plain(value: Any) -> Any:
    """Arrays and tuples of them as lists."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def run(seed: int) -> None:
    """One round; raises what went wrong."""
    here = Round(seed)
    for name, arguments in here.calls():
        fast, slow = getattr(_packing, name)(*arguments), getattr(specification, name)(*arguments)
        if plain(fast) != plain(slow):
            raise AssertionError(f"{name}{tuple(arguments)}:\n  C++    {plain(fast)}\n  Python {plain(slow)}")
        for _ in range(4):
            try:
                getattr(_packing, name)(*here.broken(arguments))
            except (ValueError, TypeError):  # TypeError: pybind11's, for what is not an integer of 64 bits
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end, seed = time.monotonic() + arguments.seconds, arguments.seed
    while seed - arguments.seed < arguments.rounds and time.monotonic() < end:
        try:
            run(seed)
        except BaseException:
            print(f"failed: python tests/fuzz/fuzz_packing.py --rounds 1 --seed {seed}", file=sys.stderr)
            raise
        seed += 1
    print(f"{seed - arguments.seed:,} rounds from seed {arguments.seed}: no difference, no crash")


if __name__ == "__main__":
    main()
