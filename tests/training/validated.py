"""Runs that validate: their command line, their rows, and commands of their own for a job's ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tests.training.jobs import rows_of

LENGTH = 160
SAMPLES = 5  # no multiple of two data-parallel ranks
BOUNDS = (16, 64)
NEEDLES = ["--validation.needles", "144,160", "--validation.needle_depths", "2", "--validation.needle_keys", "2"]


def data_words(held_out: Path) -> list[str]:
    """What such a run trains on."""
    train = ["--data.sources.0.index", str(held_out / "train"), "--data.sequence_length", str(LENGTH)]
    return [*train, "--rope.kind", "linear", "--rope.target_length", "256", "--train.loss_chunk", "23"]


def words(held_out: Path, *more: str) -> list[str]:
    """A run that validates before its first step, after its second and after its third; a chunk of logits is small."""
    sources = ["--validation.sources.0.index", str(held_out / "held_out"), "--validation.samples", str(SAMPLES)]
    when = ["--validation.interval", "2", "--validation.at_start", "true"]
    return [*data_words(held_out), *sources, *when, "--validation.bounds", ",".join(map(str, BOUNDS)), *more]


def untimed(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl as far as they depend on the computation alone."""
    kept = ("step", "loss", "grad_norm", "samples", "validation", "labels")
    return [{name: row[name] for name in kept if name in row} for row in rows_of(path)]


def killed_in_a_validation(rank: int) -> None:
    """In a job's rank: SIGKILL in the middle of the second validation."""
    _in_the_second(lambda: os.kill(os.getpid(), signal.SIGKILL))


def stopped_in_a_validation(rank: int) -> None:
    """In a job's rank: SIGUSR1 in the middle of the second validation."""
    _in_the_second(lambda: os.kill(os.getpid(), signal.SIGUSR1))


def _in_the_second(work: Any) -> None:
    from megatron_ultralong.training.validation import Validator

    whole, calls = Validator._call, []

    def call(self: Validator, *arguments: Any) -> None:
        whole(self, *arguments)
        calls.append(self.watchdog.step)
        if calls.count("the validation after step 2") == 1 and calls[-1] == "the validation after step 2":
            work()

    Validator._call = call  # type: ignore[method-assign]


def measure_both() -> None:
    """A job's command: the most memory that a step takes beyond what stays, and the most of a validation."""
    import sys

    from megatron_ultralong.cli import parse_command_line
    from megatron_ultralong.training.measured_memory import Storages
    from megatron_ultralong.training.setup import prepare
    from megatron_ultralong.training.step import train_step
    from megatron_ultralong.training.stopping import StopRequests
    from megatron_ultralong.training.validation import Validator
    from megatron_ultralong.training.watchdog import Watchdog

    config = parse_command_line(sys.argv[1:])
    with StopRequests() as requests, Watchdog(600) as watchdog:
        run = prepare(config)
        train_step(run, 0)
        for name, work in (
            ("step", lambda: train_step(run, 1)),
            ("validation", lambda: Validator(run, requests, watchdog, None).after(2)),
        ):
            with Storages() as meter:
                meter.begin()
                work()
                print(name, meter.highest(), flush=True)
