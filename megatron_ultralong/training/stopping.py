"""When a run must leave before its last step: a signal, or a limit on its time. Every rank leaves after the same step.

SLURM warns with SIGUSR1 (sbatch --signal) and ends with SIGTERM; torchrun passes SIGTERM on and kills 30 seconds
later (its --shutdown-timeout, and --signals-to-handle for SIGUSR1). The handlers only take a note: the step at hand
ends, the ranks agree, the run saves. Cost: one all-reduce of four bytes a step.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist

from megatron_ultralong.errors import UserError
from megatron_ultralong.progress import seconds_of

_REASONS = ("", "train.time_limit", signal.SIGUSR1.name, signal.SIGTERM.name)
"""What ends a run, by the number that the ranks agree on: the highest wins."""


class StopRequests:
    """Notes requests to stop while it is entered.

    Args:
        time_limit: [D-]HH:MM:SS from the start of this process; empty: none.
    """

    def __init__(self, time_limit: str = "") -> None:
        try:
            self.limit = seconds_of(time_limit) if time_limit else float("inf")
        except ValueError as error:  # before anything else is looked at
            raise UserError(f"train.time_limit is {error}; give HH:MM:SS or D-HH:MM:SS.") from None
        self.noted = 0
        self.longest = {"step": 0.0, "save": 0.0, "validation": 0.0}
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        for name in _REASONS[2:]:
            number = signal.Signals[name]
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.noted = max(self.noted, _REASONS.index(signal.Signals(number).name))

    def took(self, what: str, seconds: float) -> None:
        """Note how long a "step", "save" or "validation" took: what comes next must fit before the limit."""
        self.longest[what] = max(self.longest[what], seconds)

    def due(self) -> bool:
        """Whether this process was asked to stop, or has no time left."""
        return bool(self.noted) or _age() >= self.limit

    def agreed(self, device: torch.device, *, validates: bool = False) -> str:
        """What ends the run now, on any rank: a signal's name, "train.time_limit", or "". Every rank calls it.

        Args:
            device: of the run.
            validates: a validation comes after the next step.
        """
        following = sum(self.longest[what] for what in ("step", "save", *(["validation"] if validates else [])))
        late = _age() + following > self.limit
        number = torch.tensor(max(self.noted, int(late)), dtype=torch.int32, device=device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return _REASONS[int(number)]


def _age() -> float:
    """Seconds since this process was started."""
    return time.time() - float(psutil.Process().create_time())
