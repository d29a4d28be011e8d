"""pytorch_model*.bin, read only when asked for: torch.load with weights_only=True, mapped into memory.

weights_only rebuilds tensors and refuses any other code. Files of PyTorch before 1.6 cannot be mapped and are read
whole, one at a time.
"""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import torch

from megatron_ultralong.errors import UserError
from megatron_ultralong.families.rules import Shape

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Pickles:
    """Reads tensors of .bin files, one thread at a time; a copy in another process opens its own."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.tensors: dict[str, torch.Tensor] = {}
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Pickles], tuple[()]]:
        return Pickles, ()

    def header(self, path: Path) -> dict[str, tuple[Shape, torch.dtype, int]]:
        """Tensor name -> shape, dtype and 0.

        Raises:
            UserError: the file is missing or damaged, names more than tensors, or holds other dtypes than fp32, bf16
                and fp16.
        """
        self._open(path)
        for name, tensor in self.tensors.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
                what = tensor.dtype if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
                raise UserError(f"{path}: {name} is {what}; only fp32, bf16 and fp16 tensors are converted.")
        return {name: (tuple(tensor.shape), tensor.dtype, 0) for name, tensor in self.tensors.items()}

    def tensor(self, path: Path, name: str) -> torch.Tensor:
        """One tensor."""
        with self.lock:
            self._open(path)
            return self.tensors[name]

    def _open(self, path: Path) -> None:
        if path == self.path:
            return
        if not path.exists():
            raise UserError(f"{path} is missing; download or copy it.")
        self.tensors, self.path = {}, None
        try:
            try:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is damaged, or holds more than weights ({reason}); take safetensors.") from None
        if not isinstance(found, dict):
            raise UserError(f"{path} holds a {type(found).__name__}, not tensors by name; take safetensors.")
        self.tensors, self.path = found, path
