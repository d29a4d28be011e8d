"""When a run saves its checkpoints, how they get to the disk, and which of them it keeps.

Every rank writes its files into a folder `.step_N.TAG.tmp`, by option in a forked process while training goes on;
rank 0 then records every file's size and renames the folder. A kill at any moment leaves the checkpoints before it
as they were. A save that fails is said, and the next is tried when it is due; only the last must succeed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from megatron_ultralong.checkpoint.description import Description, sizes
from megatron_ultralong.engine.checkpoint_writer import CheckpointWriter
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import replace_directory, sync
from megatron_ultralong.training import best, checkpoints
from megatron_ultralong.training.exporting import Exporter
from megatron_ultralong.training.setup import Run
from megatron_ultralong.training.stopping import StopRequests

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A checkpoint that is not complete: what it is, where it is written, its name to be, and since when."""

    description: Description
    folder: Path
    target: Path
    started: float


class Saver:
    """Saves a run's checkpoints; every rank has one and calls it at the same steps.

    Args:
        run: what is saved.
        requests: learns how long a save takes.

    Attributes:
        saved: the newest complete checkpoint, if there is one.
    """

    def __init__(self, run: Run, requests: StopRequests) -> None:
        self.run, self.requests, self.section = run, requests, run.config.checkpoint
        self.saved, self.step = run.resumed_from, run.step  # the state that needs no saving
        self._writer = CheckpointWriter()
        self._exporter = Exporter(self.section)  # rank 0's alone does anything
        self._pending: _Pending | None = None
        if (save := self.section.save) is not None:
            try:
                _on_rank_0(lambda: _remove_leftovers(save, run))
                if self.saved is not None:  # it may have its name back
                    self.saved = checkpoints.step_folder(save, self.step)
            except OSError as error:
                raise UserError(f"checkpoint.save is {save}, where nothing can be written ({error}).") from error

    def after_step(self, done: int, updated: bool, improved: bool = False) -> None:
        """Complete what was written in the background, and save if a checkpoint is due after `done` steps.

        Args:
            done: optimizer steps.
            updated: the last of them was not skipped. After one that was, only the end of the run is saved: the
                newest checkpoint must not lie past the state before the first of too many.
            improved: it is the best so far, and to be kept.
        """
        self._exporter.poll()
        last, interval = done == self.run.config.train.steps, self.section.interval
        if not last and self._pending is not None:
            self._try(lambda: self._complete(wait=False), required=False)
        if last or (updated and (improved or (interval > 0 and done % interval == 0))):
            self.save(done, required=last)

    def save(self, done: int, required: bool = True) -> None:
        """Save the state after `done` steps, unless the newest checkpoint holds it or the run saves none.

        Args:
            done: optimizer steps.
            required: it must be complete at the return, or the run fails.

        Raises:
            UserError: on every rank, if it was required and could not be saved.
        """
        if self.section.save is None:
            return
        self._try(lambda: self._complete(wait=True), required=False)  # one at a time
        if done != self.step:
            self._try(lambda: self._begin(done, background=self.section.async_save and not required), required)

    def finish_exports(self) -> None:
        """Wait for the exports that are left, unless the job's time is over first."""
        self._exporter.finish(self.requests.due)

    def close(self) -> None:
        """End the exports that are left."""
        self._exporter.close()

    def _try(self, work: Callable[[], None], required: bool) -> None:
        """Do it; a failure, which every rank meets, is said, and raised if it was required."""
        try:
            work()
        except (OSError, CheckpointException) as error:
            pending, self._pending = self._pending, None
            assert pending is not None
            leads = dist.get_rank() == 0
            if leads:
                shutil.rmtree(pending.folder, ignore_errors=True)
            causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else []
            reason = " ".join(str(causes[0] if causes else error).split())[:300]
            free = shutil.disk_usage(pending.target.parent).free / 1e9
            message = (
                f"{pending.target}: the checkpoint could not be saved ({reason or 'rank 0 says why'}; "
                f"{free:.3f} GB of free space there)"
            )
            if required:
                raise UserError(f"{message}; mend that and start the same command again.") from error
            if leads:
                logger.error("%s; training goes on, and the next is tried when it is due", message)

    def _begin(self, done: int, background: bool) -> None:
        """Write the state after `done` steps, or start writing it."""
        run, save = self.run, self.section.save
        assert save is not None
        tag = [uuid.uuid4().hex[:8]]  # a writer that outlived its killed run must not meet this one's files
        dist.broadcast_object_list(tag)
        target = checkpoints.step_folder(save, done)
        folder = target.with_name(f".{target.name}.{tag[0]}.tmp")
        run.ahead.wait()
        position = run.data.position(run.samples_before(done))
        description = dataclasses.replace(run.description, step=done, data=position.to_json(), validation=run.standing)
        self._pending = pending = _Pending(description, folder, target, time.monotonic())
        _on_rank_0(lambda: folder.mkdir(parents=True))
        run.gather_weights()
        state = checkpoints.run_state(run.weights, run.optimizer, run.scheduler, done)
        request, failure = self._writer.plan(state, str(folder))
        _on_rank_0(lambda: _raise(failure))
        if background:
            self._writer.start(request)
            self.requests.took("save", time.monotonic() - pending.started)
        else:
            self._writer.write(request)
            self._publish(pending)

    def _complete(self, wait: bool) -> None:
        """Publish the checkpoint that is being written in the background, if it is done on every rank."""
        if self._pending is not None and self._writer.finished(wait):
            self._publish(self._pending)

    def _publish(self, pending: _Pending) -> None:
        """Give the written folder its name, and delete what need not be kept."""
        save, section = pending.target.parent, self.section
        _on_rank_0(lambda: _rename(pending))
        self._pending = None
        self.saved, self.step = pending.target, pending.description.step
        seconds = time.monotonic() - pending.started
        self.requests.took("save", seconds)
        logger.info("saved %s in %.1f s", pending.target, seconds)
        if dist.get_rank() == 0:
            self._exporter.offer(pending.target, pending.description.step)
            kept = best.point(save, pending.description.validation)
            _prune(save, section.keep_last, section.keep_every, self._exporter.needed | kept)


def _on_rank_0(work: Callable[[], None]) -> None:
    """Do it on rank 0 while the others wait; its OSError is raised on every rank."""
    message = [""]
    if dist.get_rank() == 0:
        try:
            work()
        except OSError as error:
            message = [f"{error}" or type(error).__name__]
    dist.broadcast_object_list(message)
    if message[0]:
        raise OSError(message[0])


def _raise(error: OSError | None) -> None:
    if error is not None:
        raise error


def _rename(pending: _Pending) -> None:
    """Record the sizes and give the folder its name, durably; every rank has synced its own .distcp files."""
    dataclasses.replace(pending.description, files=sizes(pending.folder)).write(pending.folder)
    for path in pending.folder.iterdir():
        if path.suffix != ".distcp":
            sync(path)
    sync(pending.folder)
    replace_directory(pending.folder, pending.target)
    sync(pending.target.parent)


def _prune(save: Path, keep_last: int, keep_every: int, needed: set[Path]) -> None:
    """Delete the checkpoints that are neither among the newest, nor of a step to keep, nor needed."""
    if keep_last == 0:
        return
    for folder in checkpoints.step_folders(save)[keep_last:]:
        if folder not in needed and (not keep_every or checkpoints.step_of(folder) % keep_every):
            aside = folder.with_name(f".{folder.name}.old")  # it stops being a checkpoint before its files go
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(save: Path, run: Run) -> None:
    """Delete what a killed run was writing or deleting, but for the only copy of a step that it was replacing.

    The best checkpoint is again that of the state from which the run goes on.
    """
    save.mkdir(parents=True, exist_ok=True)
    checkpoints.restore_replaced(save)
    for pattern in (".step_*.tmp", ".step_*.old"):
        for folder in save.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    best.point(save, run.standing)
