"""Prove and measure everything on one GPU: its tests, its rates against its own ceilings, a report.

    python tools/gpu_check.py [--part tests|measure|longest|report]

Needs PyTorch with CUDA and a few wheels, which it names where they are missing; this checkout need not be installed.
Each part takes under 8 minutes. Results are in build/gpu_check/.
"""

from __future__ import annotations

import datetime
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # this checkout, installed or not
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # lengths differ from step to step

import _gpu_machine  # noqa: E402

logger = logging.getLogger(__name__)

_LIMIT = 450.0  # seconds a part, at most 8 minutes with starting and ending


def main(
    *,
    part: Literal["all", "tests", "measure", "longest", "report"] = "all",
    output: Path = Path("build/gpu_check"),
    write_docs: bool = False,
    limit: float = _LIMIT,
    device: Literal["gpu", "cpu"] = "gpu",
    small: bool = False,
) -> None:
    """Run the tests marked gpu, measure this GPU, and report both.

    Args:
        part: tests: build the extension and run every test marked gpu. measure: attention, ring, loss, layer and step
            against a large product and a copy. longest: the longest sequence under each memory option. report:
            results.json as tables, as verification.md and as profile.json. all: one after another.
        output: folder of results.json, to which each part adds, and of the report.
        write_docs: also put the report into docs/verification.md and the profile into planning/profiles.
        limit: seconds for the tests, and for the measurements.
        device: cpu is for this tool's own tests.
        small: tiny sizes, for this tool's own tests.
    """
    import _gpu_report

    from megatron_ultralong import provenance
    from megatron_ultralong.errors import UserError

    if limit <= 0:
        raise UserError(f"--limit {limit:g} is no time; give seconds for each part, {_LIMIT:g} by default.")
    output = output.resolve()
    if part != "report":
        _gpu_machine.check_device(device)
        machine = _gpu_machine.describe(device)
        stamp = {"commit": provenance.git_commit(), "date": datetime.date.today().isoformat(), "machine": machine}
        for name in ("tests", "measure", "longest") if part == "all" else (part,):
            _gpu_machine.ensure_extension(anew=name == "tests")
            begun = time.monotonic()
            if name == "tests":
                found = _tests(output, device, limit)
            else:
                found = _measurements(name, device, machine["memory"], small, limit)
            seconds = round(time.monotonic() - begun, 1)
            _gpu_report.add(output, name, {**stamp, "seconds": seconds, "found": found})
    if part in ("all", "report"):
        _gpu_report.report(output, write_docs)
    if part in ("all", "tests") and _gpu_report.failures(output):
        sys.exit(1)


def _tests(output: Path, device: str, limit: float) -> dict[str, Any]:
    import _gpu_tests

    expression = "gpu" if device == "gpu" else "not gpu and not slow"
    return _gpu_tests.run_tests(_gpu_tests.marked_files(), expression, output / "tests.xml", limit)


def _measurements(part: Any, device: Any, memory: int, small: bool, limit: float) -> dict[str, Any]:
    import _gpu_measure

    sizes = _gpu_measure.SMALL if small else _gpu_measure.FULL
    return _gpu_measure.measure(part, device, memory, sizes, limit)


if __name__ == "__main__":
    from megatron_ultralong.cli import exit_status, run

    with exit_status():
        _gpu_machine.check_modules()
    run(main)
