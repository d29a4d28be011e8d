"""One thread a process, so that a suite of many small tests does not fight over the cores; and the gpu markers."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs more GPUs than there are: `gpu` one, `gpus(n)` n of them, `gpus` two."""
    wanted = {item: gpus for item in items if (gpus := _gpus(item))}
    if not wanted:
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for item, gpus in wanted.items():
        if found < gpus:
            reason = f"needs {gpus} CUDA devices, and there are {found}" if gpus > 1 else "no CUDA device"
            item.add_marker(pytest.mark.skip(reason=reason))


def _gpus(item: pytest.Item) -> int:
    several = item.get_closest_marker("gpus")
    if several is not None:
        return int(several.args[0]) if several.args else 2
    return int(item.get_closest_marker("gpu") is not None)
