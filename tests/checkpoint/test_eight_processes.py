"""TP 2 x CP 2 x DP 2: even writing, little memory, each byte read once. The figures are bench_checkpoint.py's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "benchmarks/bench_checkpoint.py"


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.parametrize("precision", [[], ["--fp32"]], ids=["bf16 distributed", "fp32"])
def test_a_checkpoint_is_shared_evenly(tmp_path: Path, precision: list[str]) -> None:
    size = ["--hidden", "256", "--layers", "4", "--vocabulary", "4000", "--json", str(tmp_path / "figures.json")]
    words = [sys.executable, str(BENCH), *size, *precision, "--folder", str(tmp_path)]
    subprocess.run(words, check=True, timeout=600)
    figures = json.loads((tmp_path / "figures.json").read_text())
    even = figures["total"] / len(figures["ranks"])
    assert even > 5e6 and len(figures["ranks"]) == 8
    for rank in figures["ranks"]:
        assert abs(rank["written"] / even - 1) < 0.02
        assert rank["memory"] < 1.5 * rank["written"] + 30e6
    readings = 4 * figures["metadata"] + 1e6  # by each rank: .metadata, what is not sharded, what Python opens
    assert sum(rank["read"] for rank in figures["ranks"]) < 1.1 * figures["total"] + 8 * readings
