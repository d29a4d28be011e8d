"""Memory on gigabytes, held to its bound; time beside a plain copy on the same disk, printed (-s)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.convert.large import LARGEST, build_large, copy, run_tool


@pytest.mark.slow
def test_memory_is_bounded_and_time_beside_a_copy_is_said(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("needs 20 GB of disk")
    size = build_large(tmp_path / "hf")
    seconds: dict[str, list[float]] = {"copy": [], "import": [], "export": []}
    peaks = []
    try:
        for _ in range(3):
            for kind, words in (
                ("import", ("convert_hf_to_megatron.py", "--hf", "hf", "--output", "megatron")),
                ("export", ("convert_megatron_to_hf.py", "--load", "megatron", "--output", "back")),
            ):
                seconds["copy"].append(copy(tmp_path / "hf", tmp_path / "copy"))
                shutil.rmtree(tmp_path / "copy")
                paths = [str(tmp_path / word) if word in ("hf", "megatron", "back") else word for word in words]
                elapsed, peak = run_tool(paths[0], *paths[1:], "--overwrite")
                seconds[kind].append(elapsed)
                peaks.append(peak)
    finally:
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
    copied = sum(seconds["copy"]) / 6
    print(f"\n{size / 1e9:.2f} GB, peak {max(peaks) / 1e6:.0f} MB, seconds {seconds}")
    for kind in ("import", "export"):
        print(f"{kind}: {sum(seconds[kind]) / 3 / copied:.2f} x a plain copy")
    assert max(peaks) < 1.2 * LARGEST + 500e6
