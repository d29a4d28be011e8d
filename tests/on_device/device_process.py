"""A process for a device: megatron-core is a CPU's or a GPU's for the whole of a process, so tests of either ask one.

What it computes is deterministic, on a GPU too: PyTorch's deterministic algorithms are on.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups

SECONDS = 300  # for one answer


class DeviceProcess:
    """The process, with a grid of itself alone; use as a context manager.

    Args:
        kind: "cpu" or "gpu", as parallel.device has it.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        context = mp.get_context("spawn")  # a fork of a process that has asked for CUDA cannot use it
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(kind, there), daemon=True)
        self.process.start()

    def __enter__(self) -> DeviceProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.pipe.send(None)
        self.process.join(30)

    def run(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """What `function(*arguments, **keywords)` returns there; tensors come back on the CPU."""
        try:
            self.pipe.send((function, arguments, keywords))
            if not self.pipe.poll(SECONDS):
                raise TimeoutError(f"no answer within {SECONDS} s")
            answer, error = self.pipe.recv()
        except (EOFError, BrokenPipeError):
            self.process.join(10)
            raise RuntimeError(f"the {self.kind}'s process ended with status {self.process.exitcode}") from None
        assert error is None, error
        return answer


def on_cpu(value: Any) -> Any:
    """Tensors moved there, in lists, tuples and dicts too."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    return type(value)(map(on_cpu, value)) if isinstance(value, (list, tuple)) else value


def _serve(kind: Any, pipe: Any) -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it is first used
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with groups.single_process(ParallelConfig(device=kind)):
        while (asked := pipe.recv()) is not None:
            function, arguments, keywords = asked
            try:
                pipe.send((on_cpu(function(*arguments, **keywords)), None))
            except Exception:
                pipe.send((None, traceback.format_exc()))
