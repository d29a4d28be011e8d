"""A trace of a run's first steps: every rank writes one that chrome://tracing and Perfetto open."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)


class Profiler:
    """Traces steps 2 to `steps` + 1 of this process (the first one warms up) into `folder`/rank_R.json.gz.

    Args:
        steps: how many; 0 makes every call do nothing.
        folder: where the traces go.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self.folder = folder
        self.profiler: Any = None
        if steps == 0:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            profile_memory=True,
        )
        self.profiler.start()

    def step(self) -> None:
        """Say that an optimizer step is over."""
        if self.profiler is not None:
            self.profiler.step()

    def close(self) -> None:
        """Stop; a run shorter than the trace writes what there is."""
        if self.profiler is not None:
            self.profiler.stop()

    def _write(self, profiler: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank_{dist.get_rank()}.json.gz"
        profiler.export_chrome_trace(str(path))
        logger.info("trace of the first steps: %s", path)
