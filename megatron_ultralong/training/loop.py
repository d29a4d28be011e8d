"""The loop: step, record, validate, save. Continued pretraining and instruction tuning differ only in their data."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from pathlib import Path

import torch.distributed as dist

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.engine import device
from megatron_ultralong.planning.flops import ModelShape, peak_flops, step_flops
from megatron_ultralong.training.anomalies import Anomalies
from megatron_ultralong.training.measured_memory import measured, report
from megatron_ultralong.training.metrics import StepMetrics
from megatron_ultralong.training.profiling import Profiler
from megatron_ultralong.training.recorder import Recorder
from megatron_ultralong.training.saving import Saver
from megatron_ultralong.training.setup import Run, prepare
from megatron_ultralong.training.step import StepResult, train_step
from megatron_ultralong.training.stopping import StopRequests
from megatron_ultralong.training.validation import Validator
from megatron_ultralong.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        saved: the folder of the last checkpoint, or None if the run saves none.
        stopped_by: what ended it before its last step and validation (see `stopping`), or "".
    """

    saved: Path | None
    stopped_by: str = ""


def train(config: RunConfig) -> Outcome:
    """Run `config` to its last step, resuming from its newest checkpoint if it has one.

    Raises:
        UserError: anything in the configuration, the data or the checkpoint that cannot work, or losses
            that are not finite, too many in a row.
    """
    with StopRequests(config.train.time_limit) as requests, Watchdog(config.parallel.timeout) as watchdog:
        return _train(prepare(config, watchdog.start), requests, watchdog)


def _train(run: Run, requests: StopRequests, watchdog: Watchdog) -> Outcome:
    config = run.config
    recorder = Recorder(config, run.step + 1, (run.standing or {}).get("step", -1)) if dist.get_rank() == 0 else None
    if recorder is not None:
        watchdog.closing.callback(recorder.close)  # of a run that fails too: its last numbers, its terminal as it was
    profiler = Profiler(config.log.profile, (config.checkpoint.save or Path()) / "trace")
    saver, validator = Saver(run, requests), Validator(run, requests, watchdog, recorder)
    watchdog.closing.callback(saver.close)
    stopped_by = _steps(run, requests, watchdog, saver, validator, recorder, profiler)
    if not stopped_by:
        saver.finish_exports()
    profiler.close()
    watchdog.together()  # a rank that left before rank 0 has exported would have the launcher end rank 0
    return Outcome(saver.saved, stopped_by)


def _steps(
    run: Run,
    requests: StopRequests,
    watchdog: Watchdog,
    saver: Saver,
    validator: Validator,
    recorder: Recorder | None,
    profiler: Profiler,
) -> str:
    """Every step and validation that is left; returns what stopped the run before its last, or ""."""
    config = run.config
    anomalies = Anomalies(run, saver)
    weighed = run.step + 1 + config.log.profile  # Adam's state is there, and the trace over
    stopped_by = validator.after(run.step)  # of a new run, and what a resumed one has missed
    for step in range(run.step, config.train.steps):
        watchdog.step = f"step {step + 1}"
        stopped_by = stopped_by or requests.agreed(run.device, validates=validator.due(step + 1))
        if stopped_by or validator.ended:
            saver.save(step)
            _say_stopped(config, step, stopped_by, validator.ended)
            return stopped_by
        started = time.monotonic()
        with measured(run) if step == weighed else contextlib.nullcontext() as memory:
            result = train_step(run, step)
        seconds = time.monotonic() - started
        if memory is not None:
            report(run, memory)
        spike = anomalies.judge(step, result)
        requests.took("step", seconds)
        if recorder is not None:
            recorder.record(_metrics(run, step, result, seconds, spike))
        anomalies.stop_if_too_many(step, result)
        profiler.step()
        stopped_by = validator.after(step + 1)
        saver.after_step(step + 1, result.updated, validator.improved(step + 1))
    if stopped_by:
        _say_stopped(config, config.train.steps, stopped_by, "")
    return stopped_by


def _say_stopped(config: RunConfig, step: int, stopped_by: str, ended: str) -> None:
    if not stopped_by:
        logger.info("ended after step %d of %d: %s", step, config.train.steps, ended)
        return
    go_on = "the same command goes on from there" if config.checkpoint.save else "nothing was saved: no checkpoint.save"
    logger.info("stopped by %s after step %d of %d; %s", stopped_by, step, config.train.steps, go_on)


def _metrics(run: Run, step: int, result: StepResult, seconds: float, spike: bool) -> StepMetrics:
    train, ranks = run.config.train, dist.get_world_size()
    tokens = train.global_batch_size * run.config.data.sequence_length
    flops = step_flops(ModelShape.from_hf(run.description.hf_config), tokens, result.labels, result.pairs)
    peak = peak_flops(device.name(run.device))
    losses, labels, samples = _by_source(run, step, result)
    return StepMetrics(
        step=step + 1,
        loss=result.loss,
        grad_norm=result.grad_norm,
        learning_rate=result.learning_rate,
        skipped=not result.updated,
        spike=spike,
        tokens=result.labels,
        samples=run.samples_before(step + 1),
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        tokens_per_second_per_rank=tokens / seconds / ranks,
        tflops_per_rank=flops / seconds / ranks / 1e12,
        mfu=None if peak is None else flops / seconds / ranks / peak,
        memory_gib=device.peak_memory(run.device) / 2**30,
        loss_by_source=losses,
        tokens_by_source=labels,
        samples_by_source=samples,
    )


def _by_source(run: Run, step: int, result: StepResult) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """Loss and labels of this step, and samples read in all, by name; of one source alone nothing."""
    names = run.config.data.names
    if len(names) == 1:
        return {}, {}, {}
    there = {name: own for name, own in zip(names, result.by_source, strict=False) if own[1]}  # or not told apart
    run.ahead.wait()
    samples = run.data.drawn(run.samples_before(step + 1))
    losses = {name: loss for name, (loss, _) in there.items()}
    labels = {name: count for name, (_, count) in there.items()}
    return losses, labels, dict(zip(names, samples, strict=True))
