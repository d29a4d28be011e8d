"""Checkpoints of a run exported to Hugging Face format while it goes on, each by a process beside it.

The process reads the saved checkpoint as tools/convert_megatron_to_hf.py does, so training neither waits nor holds
anything twice. One at a time, in order. An export that fails is said and nothing else; a run that ends well waits for
those that are left, all its ranks with it (`Watchdog.together`), and one that is stopped ends them. An export appears
whole or not at all.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from megatron_ultralong.config.sections import CheckpointConfig

logger = logging.getLogger(__name__)

FOLDER = "hf"
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Exporter:
    """Exports checkpoints in the background; rank 0 has one.

    Args:
        section: where checkpoints are saved, and how often one is exported.
    """

    def __init__(self, section: CheckpointConfig) -> None:
        self.interval, self.save = section.export_interval, section.save
        self.waiting: collections.deque[Path] = collections.deque()
        self.running: tuple[Path, subprocess.Popen[bytes], IO[bytes]] | None = None

    @property
    def needed(self) -> set[Path]:
        """Checkpoints that are being read or will be, and so must stay."""
        return set(self.waiting) | ({self.running[0]} if self.running is not None else set())

    def offer(self, checkpoint: Path, step: int) -> None:
        """A checkpoint is complete: export it if one of this step is wanted."""
        if self.interval and step % self.interval == 0:
            self.waiting.append(checkpoint)
            self.poll()

    def poll(self) -> None:
        """Say what has ended, and start what is next; takes no time."""
        if self.running is not None and self.running[1].poll() is not None:
            self._ended()
        if self.running is None and self.waiting:
            self._start(self.waiting.popleft())

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Wait for every export, until `stopped`."""
        if self.needed:
            logger.info("waiting for %d exports to Hugging Face format", len(self.needed))
        while self.needed and not stopped():
            if self.running is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.running[1].wait(timeout=1.0)
            self.poll()

    def close(self) -> None:
        """End the export that runs, and forget the others."""
        for checkpoint in sorted(self.needed):
            logger.warning("the export of %s was cut off; tools/convert_megatron_to_hf.py makes it", checkpoint)
        if self.running is not None:
            self.running[1].terminate()
            self.running[1].wait()
            self.running[2].close()
        self.waiting.clear()
        self.running = None
        self._clean()

    def _target(self, checkpoint: Path) -> Path:
        return checkpoint.parent / FOLDER / checkpoint.name

    def _start(self, checkpoint: Path) -> None:
        self._clean()
        kept = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
        said = tempfile.TemporaryFile()
        process = subprocess.Popen(
            [sys.executable, "-m", "megatron_ultralong.convert.background"]
            + [str(checkpoint), str(self._target(checkpoint)), str(os.getpid())],
            env={**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        self.running = checkpoint, process, said

    def _ended(self) -> None:
        assert self.running is not None
        checkpoint, process, said = self.running
        self.running = None
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
        said.close()
        if process.returncode == 0:
            logger.info("exported %s", self._target(checkpoint))
        else:
            logger.error(
                "the export of %s failed (%s); training goes on", checkpoint, lines[-1].removeprefix("error: ")
            )

    def _clean(self) -> None:
        """Delete what an export that was ended had written."""
        for folder in (self.save / FOLDER).glob(".step_*.tmp") if self.save is not None else ():
            shutil.rmtree(folder, ignore_errors=True)
