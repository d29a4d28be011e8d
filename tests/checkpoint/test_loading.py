"""What a failed load is called: damage is the checkpoint's, a disk or a lack of memory is not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemReader

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.checkpoint.loading import DamagedError, load_weights
from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups
from megatron_ultralong.model.build import build_model
from tests.training.conftest import workspace  # noqa: F401


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EIO, "Input/output error"), OSError),
        (OSError(errno.ESTALE, "Stale file handle"), OSError),
        (MemoryError(), MemoryError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), RuntimeError),
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
        (
            RuntimeError("PytorchStreamReader failed reading zip archive: no central directory"),
            DamagedError,
        ),
        (FileNotFoundError(errno.ENOENT, "No such file"), DamagedError),
        (EOFError(), DamagedError),
    ],
)
def test_what_a_failed_read_is_called(
    workspace: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    raised: type[Exception],
) -> None:
    def read(*_: object) -> None:
        raise error

    description = Description.read(workspace / "megatron")
    with groups.single_process():
        model = build_model(description.hf_config, description.rope, ParallelConfig(device="cpu"), "fp32")
        load_weights(model, workspace / "megatron")
        monkeypatch.setattr(FileSystemReader, "read_data", read)
        with pytest.raises((raised, CheckpointException)) as found:
            load_weights(model, workspace / "megatron")
    assert type(found.value) is raised
