"""Rows of tensors, a few megabytes at a time: what both directions of conversion are made of.

A source gives `rows(name, start, stop)` in a buffer that each thread uses again, so memory does not depend on a
tensor's size, and no page is touched for the first time but once. What passes through is tallied: CRC-32 by Hugging
Face name, and whether all of it is finite. Checksums guard against what goes wrong on the way (a bad disk, a wrong
row), not against malice. Reading, checksums and writing let go of Python's lock, so threads share files out
(workers.py).
"""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from megatron_ultralong.convert.formats.handles import Handles, unreadable
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.rules import Dimensions, Rule, Shape

try:
    from isal.isal_zlib import crc32
except ImportError:  # the same numbers, a tenth as fast
    from zlib import crc32

CHUNK = 4 << 20
"""Bytes that are read, checked and written at once: they stay in the processor's cache."""


_WRITTEN = 1 << 18
"""Bytes that one call writes: Linux takes pages of megabytes for larger ones, which a virtual machine may not have at
hand (2 GB took 3.7 s so, and 1.0 s in calls of 256 KB)."""


class Source(Protocol):
    """Tensors by name, read by rows."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop of a tensor, as stored; the result holds until the thread's next call."""
        ...


class Fused(Protocol):
    """megatron-core's tensors, read by rows of one layer."""

    def rows(self, key: str, start: int, stop: int, layer: int | None = None) -> torch.Tensor:
        """As `Source.rows`, of one index of the layer axis where there is one."""
        ...


class Files:
    """Reads bytes of files into a buffer a thread; a copy in another process opens its own.

    Attributes:
        handles: the open files, few of them whatever the number of files.
    """

    def __init__(self) -> None:
        self.handles = Handles()
        self.own = threading.local()

    def __reduce__(self) -> tuple[type[Files], tuple[()]]:
        return Files, ()

    def read(self, path: Path, offset: int, dtype: torch.dtype, shape: Shape) -> torch.Tensor:
        """A tensor that lies at `offset`, in a buffer: it holds until the thread's next call.

        Raises:
            UserError: the file ends before it, or cannot be read.
        """
        size = math.prod(shape) * dtype.itemsize
        if size > len(getattr(self.own, "buffer", ())):
            self.own.buffer = torch.empty(size, dtype=torch.uint8)
        values = self.own.buffer[:size]
        try:
            with self.handles.opened(path) as descriptor:
                target, done = values.numpy().data, 0
                while done < size:
                    count = os.preadv(descriptor, [target[done:]], offset + done)
                    if not count:
                        raise UserError(f"{path} is truncated (it ends before byte {offset + size}); copy it again.")
                    done += count
        except OSError as error:
            raise unreadable(path, error) from None
        return values.view(dtype).view(shape)


@dataclasses.dataclass
class Tally:
    """What is known of the tensors that passed, by Hugging Face name.

    Attributes:
        checksums: CRC-32 of the bytes of each, in row order.
        not_finite: those that hold NaN or infinity.
    """

    checksums: dict[str, int] = dataclasses.field(default_factory=dict)
    not_finite: set[str] = dataclasses.field(default_factory=set)

    def add(self, name: str, rows: torch.Tensor) -> None:
        """Count the next rows of a tensor."""
        data = rows.contiguous().view(-1)
        self.checksums[name] = crc32(data.view(torch.uint8).numpy().data, self.checksums.get(name, 0))
        low, high = data.aminmax()  # NaN wins in both, and nothing is allocated
        if not (torch.isfinite(low) and torch.isfinite(high)):
            self.not_finite.add(name)

    def update(self, other: Tally) -> None:
        """Take over another's findings about other tensors."""
        self.checksums |= other.checksums
        self.not_finite |= other.not_finite


def cut(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """(first row, behind the last) of blocks of about `CHUNK` bytes."""
    step = max(1, CHUNK // row_bytes)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def fuse(
    source: Source, rule: Rule, layer: int, dimensions: Dimensions, dtype: torch.dtype, tally: Tally
) -> Iterator[torch.Tensor]:
    """Rows of one megatron-core tensor in order, read from its Hugging Face tensors; each holds until the next."""
    names, width = rule.names(layer), math.prod(rule.fused_shape(dimensions)[1:])
    spans = rule.spans(dimensions)
    in_order = sorted(spans, key=lambda span: (span.part, span.start)) == sorted(spans, key=lambda span: span.part)
    if not in_order:  # one tensor whose rows change places: a checksum needs its own order
        for name, (count, *_) in zip(names, rule.shapes(dimensions), strict=True):
            for start, stop in cut(count, width * dtype.itemsize):
                tally.add(name, source.rows(name, start, stop).to(dtype))
    for span in spans:
        for start, stop in cut(span.rows, width * dtype.itemsize):
            rows = source.rows(names[span.part], span.start + start, span.start + stop).to(dtype)
            if in_order:
                tally.add(names[span.part], rows)
            yield rows


def unfuse(
    source: Fused,
    rule: Rule,
    layer: int,
    part: int,
    dimensions: Dimensions,
    dtype: torch.dtype,
    tally: Tally,
    scale: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Rows of one Hugging Face tensor in order, read from its megatron-core tensor; each holds until the next.

    `scale`, fp32 [rows], multiplies each row (folding.py).
    """
    name, width = rule.names(layer)[part], math.prod(rule.fused_shape(dimensions)[1:])
    own = sorted((span for span in rule.spans(dimensions) if span.part == part), key=lambda span: span.start)
    for span in own:
        for start, stop in cut(span.rows, width * dtype.itemsize):
            index = layer if rule.layered else None
            rows = source.rows(rule.megatron, span.fused + start, span.fused + stop, index)
            if scale is not None:
                factors = scale[span.start + start : span.start + stop]
                rows = rows * factors.view(-1, *[1] * (rows.dim() - 1))
            rows = rows.to(dtype)
            tally.add(name, rows)
            yield rows


def portions(data: memoryview) -> Iterator[memoryview]:
    """Bytes in the portions that they are to be written in."""
    for start in range(0, len(data), _WRITTEN):
        yield data[start : start + _WRITTEN]


def raw(rows: torch.Tensor) -> memoryview:
    """The bytes of rows in memory order."""
    data: memoryview = rows.contiguous().view(-1).view(torch.uint8).numpy().data
    return data
