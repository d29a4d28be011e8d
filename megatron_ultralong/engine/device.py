"""Which device a process computes on, decided once."""

from __future__ import annotations

import os
from typing import Literal

import torch

from megatron_ultralong.engine import cpu
from megatron_ultralong.errors import UserError


def use(device: Literal["auto", "cpu", "gpu"] = "auto") -> torch.device:
    """Choose this process's device: its own GPU (by LOCAL_RANK), or the CPU with the CPU backend switched on.

    Raises:
        UserError: "gpu" where PyTorch sees none.
    """
    available = torch.cuda.is_available() and not cpu.is_active()
    if device == "gpu" and not available:
        raise UserError('parallel.device is "gpu", but PyTorch sees no GPU here; set it to "cpu" or "auto".')
    if device == "cpu" or not available:
        cpu.activate()
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
