"""Steps that went wrong: a loss or a gradient that is not finite, and a loss that jumps.

A step of the first kind changed nothing (see `step.train_step`); it is named with the samples that were in it, and
too many in a row end the run with a checkpoint of the state before them. One of the second kind is named too, and
counts: whether to go back is for people to say.
"""

from __future__ import annotations

import collections
import logging
import statistics

from megatron_ultralong.errors import UserError
from megatron_ultralong.training.saving import Saver
from megatron_ultralong.training.setup import Run
from megatron_ultralong.training.step import StepResult

logger = logging.getLogger(__name__)

_WINDOW = 64
_ENOUGH = 16
_NAMED = 4


class Anomalies:
    """Judges each step; every rank has one and comes to the same judgement.

    Args:
        run: whose steps.
        saver: saves before the run ends.
    """

    def __init__(self, run: Run, saver: Saver) -> None:
        self.run, self.saver = run, saver
        self.skipped = 0
        self.losses: dict[tuple[int, ...], collections.deque[float]] = {}

    def judge(self, step: int, result: StepResult) -> bool:
        """Note how optimizer step `step` (0 for the first) went; its loss is compared with steps' of the same sources.

        Returns:
            Whether its loss is a spike.
        """
        if not result.updated:
            self.skipped += 1
            logger.warning("%s; the step is skipped", self._what(step, result))
            return False
        self.skipped = 0
        alike = tuple(place for place, (_, labels) in enumerate(result.by_source) if labels)
        losses = self.losses.setdefault(alike, collections.deque(maxlen=_WINDOW))
        height = spike(losses, result.loss)
        losses.append(result.loss)
        if not 0 < self.run.config.log.spike <= height:
            return False
        logger.warning(
            "step %d: the loss %.4f is a spike, %.0f deviations above the median %.4f of the last %d; it had %s",
            step + 1,
            result.loss,
            height,
            statistics.median(list(losses)[:-1]),
            len(losses) - 1,
            self._samples(self._all_samples(step)),
        )
        return True

    def stop_if_too_many(self, step: int, result: StepResult) -> None:
        """End the run after `train.max_skipped` + 1 skipped steps in a row, with the state before the first.

        Raises:
            UserError: on every rank.
        """
        if self.skipped <= self.run.config.train.max_skipped:
            return
        before = step + 1 - self.skipped
        self.saver.save(before)
        where = f"; {self.saver.saved} holds the state before" if self.saver.saved is not None else ""
        raise UserError(
            f"{self._what(step, result)}; so it was {self.skipped} times in a row, which train.max_skipped "
            f"{self.run.config.train.max_skipped} does not allow{where}; lower optimizer.learning_rate, "
            "or look at these samples."
        )

    def _what(self, step: int, result: StepResult) -> str:
        suspects = result.suspects or self._all_samples(step)
        return (
            f"step {step + 1}: the loss is {result.loss:.4g} and the gradient norm {result.grad_norm:.4g}, "
            f"by {self._samples(suspects)}"
        )

    def _all_samples(self, step: int) -> tuple[int, ...]:
        first = self.run.samples_before(step)
        return tuple(range(first, first + self.run.config.train.global_batch_size))

    def _samples(self, numbers: tuple[int, ...]) -> str:
        """Samples of the blend by number, source and place in it."""
        names = []
        for number in numbers[:_NAMED]:
            self.run.ahead.wait()
            source, place = self.run.data.locate(number)
            names.append(f"sample {number} ({self.run.config.data.sources[source].index}, {place})")
        more = len(numbers) - _NAMED
        return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def spike(losses: collections.deque[float], loss: float) -> float:
    """How many deviations `loss` lies above the median of `losses`; 0.0 while there are too few to tell.

    A deviation is 1.4826 times the median absolute one (a normal distribution's standard deviation, but a few wild
    losses do not move it), and at least half a percent of the median, so that a run that hardly moves raises no alarm.
    """
    if len(losses) < _ENOUGH:
        return 0.0
    median = statistics.median(losses)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in losses)
    return (loss - median) / max(deviation, 0.005 * abs(median), 1e-9)
