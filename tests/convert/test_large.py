"""Memory on gigabytes, held to its bound; time beside a plain copy on the same disk, printed (-s)."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import pytest

from tests.convert.large import LARGEST, build_large, copy, run_tool

TOOLS = {"import": ("convert_hf_to_megatron.py", "--hf", "hf"), "export": ("convert_megatron_to_hf.py", "--load", "m")}


@pytest.mark.slow
def test_memory_is_bounded_and_time_beside_a_copy_is_said(tmp_path: Path) -> None:
    """Copies and conversions by turns, each onto a disk that has nothing else to write and into a new folder."""
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("needs 20 GB of disk")
    size = build_large(tmp_path / "hf")
    seconds: dict[str, list[float]] = {"copy": []}
    peaks = []
    try:
        run_tool(*TOOLS["import"], "--output", "m", folder=tmp_path)
        for verify in ("checksums", "checksums", "none"):
            for kind, words in TOOLS.items():
                seconds["copy"].append(copy(tmp_path / "hf", tmp_path / "out"))
                elapsed, peak = run_tool(*words, "--output", "out", "--verify", verify, folder=tmp_path)
                seconds.setdefault(f"{kind}, --verify {verify}", []).append(elapsed)
                peaks.append(peak)
    finally:
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
    copied = statistics.median(seconds["copy"])
    print(f"\n{size / 1e9:.2f} GB, peak {max(peaks) / 1e6:.0f} MB")
    for kind, found in seconds.items():
        times = ", ".join(f"{value:.1f}" for value in found)
        print(f"{kind}: {times} s, {statistics.median(found) / copied:.2f} x a plain copy")
    assert max(peaks) < 1.2 * LARGEST + 500e6
