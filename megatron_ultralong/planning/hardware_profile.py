"""What a kind of machine was measured to do, on disk: what plans of time and memory can start from.

`tools/gpu_check.py` writes it; one JSON file a kind of machine. No torch, no processes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json, write_json

FORMAT = 1
_MEND = "write it anew with tools/gpu_check.py"


@dataclasses.dataclass(frozen=True)
class AttentionRate:
    """Of the fastest kernel on one causal block, 32 query and 8 key-value heads of 128, bf16.

    Attributes:
        tokens: the block's length.
        forward: operations a second, at four a pair of a query and a key, a head and a channel.
        backward: operations a second, at ten.
    """

    tokens: int
    forward: float
    backward: float


@dataclasses.dataclass(frozen=True)
class HardwareProfile:
    """One GPU.

    Attributes:
        name: as PyTorch calls it.
        memory: bytes.
        matmul: bf16 operations a second of a large product.
        copy: bytes a second that a copy within the device reads and writes, added.
        attention: rates, the shortest block first.
        commit: of this repository when it was measured, or None.
        date: of the measurement, YYYY-MM-DD.
    """

    name: str
    memory: int
    matmul: float
    copy: float
    attention: tuple[AttentionRate, ...]
    commit: str | None
    date: str

    def write(self, path: Path) -> None:
        """To a JSON file."""
        write_json(path, {"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> HardwareProfile:
        """From a file that `write` made.

        Raises:
            UserError: it is missing, of another format, or an entry is missing, unknown or of another type.
        """
        value = read_json(path, "the hardware profile", _MEND)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path}: the hardware profile is not of format {FORMAT}; {_MEND}.")
        entries = {key: entry for key, entry in value.items() if key != "format"}
        try:
            rates = tuple(AttentionRate(**rate) for rate in entries.pop("attention"))
            found = cls(**entries, attention=rates)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: an entry of the hardware profile is missing or unknown ({error}); {_MEND}."
            ) from None
        found._check(path)
        return found

    def _check(self, path: Path) -> None:
        numbers: dict[str, Any] = {"memory": self.memory, "matmul": self.matmul, "copy": self.copy}
        for rate in self.attention:
            numbers |= {f"attention.{name}": number for name, number in dataclasses.asdict(rate).items()}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
                raise UserError(
                    f"{path}: {name} of the hardware profile is {number!r}, and no positive number; {_MEND}."
                )
