"""Measure this machine in about a minute and write its hardware profile, for tools/plan_run.py.

    torchrun --nproc-per-node 8 tools/calibrate.py --output machine.json

One process a GPU (or, on a CPU, one a process of training), all at once: rates of products by width, of attention by
length, of memory by size, of every kind of message between them, of the host. Without torchrun one process measures all
but messages, which the profile then takes from the one in planning/profiles that is nearest.
"""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # this checkout, installed or not

from megatron_ultralong.cli import run  # noqa: E402
from megatron_ultralong.errors import UserError  # noqa: E402
from megatron_ultralong.files import disk_errors_named, writable  # noqa: E402


def main(
    *,
    output: Path,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    seconds: float = 45.0,
) -> None:
    """Measure this machine and write its profile.

    Args:
        output: JSON file for the profile; give it to tools/plan_run.py --hardware.
        device: "auto": GPUs where there are some.
        precision: of products and attention; "auto": bf16 on GPUs, fp32 on CPUs.
        seconds: for the measurements, roughly.
    """
    if output.suffix != ".json" or not writable(output.parent):
        raise UserError(f"--output is {output}; give a .json file in a folder that can be written.")
    if seconds <= 0:
        raise UserError(f"--seconds is {seconds:g}; give a time above 0, 45 by default.")
    import torch
    import torch.distributed as dist
    from _calibrate_measure import CPU, GPU, measure

    from megatron_ultralong.engine import device as engine_device

    own = engine_device.use(device)
    if "RANK" in os.environ:
        backend = "nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=600))
    half = precision == "bf16" or (precision == "auto" and own.type == "cuda")
    found = measure(own, torch.bfloat16 if half else torch.float32, GPU if own.type == "cuda" else CPU, seconds)
    if not dist.is_initialized() or dist.get_rank() == 0:
        with disk_errors_named(output):
            found.write(output)
        best = max(found.matmul, key=lambda one: one.rate)
        print(
            f"{found.name}: products up to {best.rate / 1e12:,.3f} TFLOPS, attention up to "
            f"{max(one.forward for one in found.attention) / 1e12:,.3f}, memory up to "
            f"{max(one.rate for one in found.copy) / 1e9:,.1f} GB/s, {1e6 * (found.launch or 0):.1f} us an operator, "
            f"{len(found.links)} kinds of messages; {output}"
        )
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run(main)
