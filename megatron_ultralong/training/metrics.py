"""What a run records: one JSON line a step, a line on the terminal now and then, TensorBoard by option.

Rank 0 only. metrics.jsonl is appended line by line; a resumed run first drops the lines past its step.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

from megatron_ultralong.config import LogConfig
from megatron_ultralong.files import atomic_file
from megatron_ultralong.progress import duration

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """One optimizer step.

    Attributes:
        step: 1 for the first.
        loss: mean over the step's labels, in nats a token.
        grad_norm: global, before clipping.
        learning_rate: at this step.
        tokens: labels that counted, over all ranks.
        seconds: wall time of the step.
        tokens_per_second: tokens processed (labels or not) over `seconds`.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    tokens_per_second: float


class Recorder:
    """Writes each step's metrics where the run's [log] section says.

    Args:
        section: the run's [log].
        default: metrics.jsonl's path if the section names none; None: no file.
        first_step: the first step of this process; lines of it and later ones are dropped.
        last_step: the run's last step, for the ETA.
    """

    def __init__(self, section: LogConfig, default: Path | None, first_step: int, last_step: int) -> None:
        self.interval, self.first_step, self.last_step = section.interval, first_step, last_step
        self.path = section.metrics or default
        self.started = time.monotonic()
        if self.path is not None:
            _keep_before(self.path, first_step)
        self.tensorboard = _tensorboard(section.tensorboard)

    def record(self, metrics: StepMetrics) -> None:
        """Record one step."""
        row = dataclasses.asdict(metrics)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        if self.tensorboard is not None:
            for name, value in row.items():
                self.tensorboard.add_scalar(name, value, metrics.step)
        if metrics.step % self.interval == 0 or metrics.step in (self.first_step, self.last_step):
            self._show(metrics)

    def _show(self, metrics: StepMetrics) -> None:
        done = metrics.step - self.first_step + 1
        left = (time.monotonic() - self.started) / done * (self.last_step - metrics.step)
        logger.info(
            "step %d of %d: loss %.4f, gradient norm %.3f, learning rate %.2e, %s tokens/s, %s left",
            metrics.step,
            self.last_step,
            metrics.loss,
            metrics.grad_norm,
            metrics.learning_rate,
            f"{metrics.tokens_per_second:,.0f}",
            duration(left),
        )

    def close(self) -> None:
        """Flush what is buffered."""
        if self.tensorboard is not None:
            self.tensorboard.close()


def _keep_before(path: Path, step: int) -> None:
    """Drop the lines of `step` and later, and a line that a kill cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] < step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _tensorboard(folder: Path | None) -> Any:
    if folder is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
