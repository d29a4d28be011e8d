"""What a run records: a JSON line a step and a validation, TensorBoard, Weights & Biases by option, the terminal.

Rank 0 only. metrics.jsonl is appended line by line; a resumed run first drops the lines past its step. A validation's
line has `validation`, a table of its metrics, where a step's has its fields.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_ultralong.config.reading import resolved
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.files import atomic_file
from megatron_ultralong.training.metrics import StepMetrics, ValidationMetrics
from megatron_ultralong.training.terminal_view import LiveView, PlainView, is_terminal

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Somewhere a step's metrics go."""

    def record(self, metrics: StepMetrics) -> None:
        """Take one step's metrics."""

    def validated(self, found: ValidationMetrics) -> None:
        """Take one validation's."""

    def close(self) -> None:
        """Flush what is buffered."""


class Recorder:
    """Hands each step's metrics to every place that the run's [log] section names.

    Args:
        config: the run; what is not named goes below `checkpoint.save`, if there is one.
        first_step: the first step of this process; earlier lines of metrics.jsonl stay, later ones are dropped.
        validated: the step of the last validation that the run knows of; -1: none.
    """

    def __init__(self, config: RunConfig, first_step: int, validated: int = -1) -> None:
        section, save = config.log, config.checkpoint.save
        lines = section.metrics or (save and save / "metrics.jsonl")
        events = section.tensorboard or (save and save / "tensorboard")
        self.sinks: list[Sink] = []
        if lines is not None:
            self.sinks.append(_JsonLines(lines, first_step, validated))
        if events is not None:
            self.sinks.append(_TensorBoard(events, first_step))
        if section.wandb:
            self.sinks.append(_WeightsAndBiases(section.wandb, config))
        view = LiveView if is_terminal() else PlainView
        self.sinks.append(view(first_step, config.train.steps, section.interval))

    def record(self, metrics: StepMetrics) -> None:
        """Record one step."""
        for sink in self.sinks:
            sink.record(metrics)

    def validated(self, found: ValidationMetrics) -> None:
        """Record one validation."""
        for sink in self.sinks:
            sink.validated(found)

    def close(self) -> None:
        """Flush what is buffered and leave the terminal as it was."""
        for sink in self.sinks:
            sink.close()


class _JsonLines:
    def __init__(self, path: Path, first_step: int, validated: int = -1) -> None:
        self.path, self.failed = path, False
        _keep_before(path, first_step, validated)

    def record(self, metrics: StepMetrics) -> None:
        self._append(_plain(dataclasses.asdict(metrics)))

    def validated(self, found: ValidationMetrics) -> None:
        row = {"step": found.step, "validation": found.metrics, "labels": found.labels, "seconds": found.seconds}
        self._append(_plain(row))

    def _append(self, row: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            if not self.failed:
                logger.warning("%s: cannot be written (%s); training goes on without.", self.path, error.strerror)
            self.failed = True

    def close(self) -> None:
        pass


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as JSON has it: null for a number that is not finite; what is told by source only where it is."""
    return {name: _finite(value) for name, value in row.items() if value != {}}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(number) for name, number in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_before(path: Path, step: int, validated: int) -> None:
    """Drop the lines of `step` and later, of validations after `validated`, and a line that a kill cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
            if line.endswith("\n") and (row["step"] <= validated if "validation" in row else row["step"] < step):
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


class _TensorBoard:
    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def record(self, metrics: StepMetrics) -> None:
        for name, value in metrics.flat().items():
            if value is not None and name != "step":
                self.writer.add_scalar(name, value, metrics.step)

    def validated(self, found: ValidationMetrics) -> None:
        for name, value in found.metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, found.step)

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, config: RunConfig) -> None:
        import wandb

        save = config.checkpoint.save
        name = save.resolve().name if save is not None else None
        self.run: Any = wandb.init(project=project, name=name, id=name, resume="allow", config=resolved(config))

    def record(self, metrics: StepMetrics) -> None:
        self.run.log(metrics.flat(), step=metrics.step)

    def validated(self, found: ValidationMetrics) -> None:
        self.run.log({f"validation/{name}": value for name, value in found.metrics.items()}, step=found.step)

    def close(self) -> None:
        self.run.finish()
