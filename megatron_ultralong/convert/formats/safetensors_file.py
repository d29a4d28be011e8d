"""safetensors files by rows: the header read, and a file written whose tensors come in any order.

The library checks a file's header on opening, but reads and writes whole tensors, and a whole file at once. The
format is 8 bytes of length, a JSON header and the values, so streaming it takes a page; that the library reads what
is written here is tested.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_ultralong.convert.formats.handles import unreadable
from megatron_ultralong.convert.formats.row_stream import portions, raw
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.rules import Shape

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_header(path: Path) -> dict[str, tuple[Shape, torch.dtype, int]]:
    """Tensor name -> shape, dtype and first byte in the file.

    Raises:
        UserError: the file is missing, truncated, not safetensors, or holds other dtypes than fp32, bf16 and fp16.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; download or copy it.")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        with stream:
            with safe_open(path, framework="pt"):  # checks sizes, offsets and names
                pass
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or not safetensors ({error}); download or copy it again.") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{path}: {name} is {entry['dtype']}; known: {', '.join(DTYPES)} (undo the quantization first)."
            )
    return {
        name: (tuple(entry["shape"]), DTYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


class Writer:
    """A safetensors file whose tensors are announced first and then written by rows; a context manager.

    Several may have one file open at once, each for its own tensors: the header they write is the same.

    Args:
        path: the file.
        tensors: name -> shape and dtype of all that will be written.
    """

    def __init__(self, path: Path, tensors: dict[str, tuple[Shape, torch.dtype]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        # Wider values first, as the library writes them, so that each tensor is aligned.
        for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: -item[1][1].itemsize):
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.places = {
            name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items() if name[:2] != "__"
        }
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._write(memoryview(len(text).to_bytes(8, "little") + text), 0)

    def add(self, name: str, rows: torch.Tensor) -> None:
        """Write the next rows of a tensor."""
        data = raw(rows)
        for portion in portions(data):
            self._write(portion, self.places[name])
            self.places[name] += len(portion)

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            count = os.pwrite(self.file, data, offset)
            data, offset = data[count:], offset + count

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.fsync(self.file)
        os.close(self.file)
