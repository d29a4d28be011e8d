"""When a run saves its checkpoints, and which of them it keeps."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path

from megatron_ultralong.training import checkpoint
from megatron_ultralong.training.setup import Run
from megatron_ultralong.training.stopping import StopRequests

logger = logging.getLogger(__name__)


class Saver:
    """Saves a run's checkpoints; every rank has one and calls it at the same steps.

    Args:
        run: what is saved.
        requests: learns how long a save takes.

    Attributes:
        saved: the newest complete checkpoint, if there is one.
    """

    def __init__(self, run: Run, requests: StopRequests) -> None:
        self.run, self.requests = run, requests
        self.section = run.config.checkpoint
        self.saved: Path | None = checkpoint.newest(self.section.save)
        self.step = run.step  # that the newest checkpoint, or the beginning, holds

    def after_step(self, done: int) -> None:
        """Save if a checkpoint is due after `done` steps."""
        interval = self.section.interval
        if done == self.run.config.train.steps or (interval > 0 and done % interval == 0):
            self.save(done)

    def save(self, done: int) -> None:
        """Save the state after `done` steps, unless the newest checkpoint holds it or the run saves none."""
        if self.section.save is None or done == self.step:
            return
        started = time.monotonic()
        run = self.run
        position = run.data.position(run.samples_before(done))
        description = dataclasses.replace(run.description, step=done, data=position.to_json())
        self.saved = checkpoint.save_run(self.section.save, run.weights, run.optimizer, run.scheduler, description)
        self.step = done
        self.requests.took("save", time.monotonic() - started)
        logger.info("saved %s", self.saved)
