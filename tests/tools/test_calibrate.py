"""A calibration on a CPU, with and without a second process, gives a profile that a plan can start from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _calibrate_measure
import pytest
import torch

from megatron_ultralong.planning.hardware_profile import HardwareProfile, LinkRate, find
from megatron_ultralong.planning.messages import Group, seconds

ROOT = Path(__file__).parents[2]


def calibrate(output: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "tools/calibrate.py", "--output", str(output), "--seconds", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=200)


@pytest.mark.gloo
def test_two_processes(tmp_path: Path) -> None:
    done = calibrate(tmp_path / "here.json", "-m", "torch.distributed.run", "--nproc-per-node", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    found = find(str(tmp_path / "here.json"))
    assert {(one.scope, one.kind) for one in found.links} == {
        ("domain", kind) for kind in ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send")
    }
    assert found.domain == 2 and not found.asynchronous and found.precision == "fp32"
    assert 1e8 < max(one.rate for one in found.matmul) < 1e13
    assert 1e-7 < (found.launch or 0) < 1e-2
    assert all(source.kind == "measured" for source in found.sources.values())


def test_one_process_takes_its_links_from_the_house(tmp_path: Path) -> None:
    done = calibrate(tmp_path / "alone.json")
    assert done.returncode == 0, done.stderr[-2000:]
    found, cpu = find(str(tmp_path / "alone.json")), find("cpu")
    assert found.links == cpu.links and found.matmul != cpu.matmul


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send"])
@pytest.mark.parametrize("n", [2, 8])
def test_rates_give_back_the_times_they_were_made_of(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_rate` is the inverse of `planning.messages.seconds`."""
    payload = 2**20
    monkeypatch.setattr(_calibrate_measure, "_together", lambda call, group, device, limit: call())
    times = {_calibrate_measure._SMALL * n: 0.001, payload // 4 // n * n: 0.025, payload // 4: 0.025}
    calls: Callable[[int], Callable[[], Any]] = lambda numbers: lambda: times[numbers]  # noqa: E731
    rate, latency = _calibrate_measure._rate(calls, kind, n, payload, None, torch.device("cpu"), 1.0)
    profile = _with_link(LinkRate("domain", kind, rate, latency))  # type: ignore[arg-type]
    assert seconds(profile, kind, payload, Group(1, n)) == pytest.approx(0.025)  # type: ignore[arg-type]


def _with_link(link: LinkRate) -> HardwareProfile:
    import dataclasses

    return dataclasses.replace(find("h100"), links=(link,))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "profile.txt"], "--output is profile.txt; give a .json file"),
        (["--output", "file/x.json"], "give a .json file in a folder that can be written"),
        (["--output", "x.json", "--seconds", "0"], "--seconds is 0; give a time above 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, str(ROOT / "tools" / "calibrate.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
