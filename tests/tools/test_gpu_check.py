"""tools/gpu_check.py without a GPU: all its measurements at tiny sizes on a CPU, its report, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import _gpu_machine
import _gpu_measure
import _gpu_report
import _gpu_tests
import pytest
import torch
from _gpu_steps import MEMORY_OPTIONS
from _gpu_timing import OUT_OF_MEMORY

from megatron_ultralong.engine import cpu_products
from megatron_ultralong.errors import UserError
from megatron_ultralong.planning.hardware_profile import HardwareProfile

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.py"


def gpu_check(*words: str) -> subprocess.CompletedProcess[str]:
    """From another folder, without the package on Python's path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(TOOL), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd="/",
        env=environment,
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of --part measure and --part longest on the CPU."""
    folder = tmp_path_factory.mktemp("gpu_check")
    for part in ("measure", "longest"):
        words = ["--part", part, "--device", "cpu", "--small", "--limit", "120", "--output", str(folder)]
        done = gpu_check(*words)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_everything_is_measured(output: Path) -> None:
    parts = json.loads((output / "results.json").read_text())
    for part, shares in _gpu_measure.PARTS.items():
        assert list(parts[part]["found"]) == list(shares)
    found = parts["measure"]["found"] | parts["longest"]["found"]
    assert found["ceilings"]["matmul_flops"] > 0 and found["ceilings"]["copy_bytes_per_second"] > 0
    small = _gpu_measure.SMALL
    assert [row["tokens"] for row in found["attention"]] == list(small.blocks)
    assert [(row["tokens_a_rank"], row["ranks"]) for row in found["ring"]] == list(small.rings)
    assert [(row["tensor"], row["tokens"]) for row in found["steps"]] == [(1, 64), (1, 128), (2, 64)]
    assert [row["memory"] for row in found["longest"]] == list(MEMORY_OPTIONS)
    assert not [row for rows in found.values() for row in rows if "left_out" in row]
    for row in found["steps"]:
        assert row["loss"] == pytest.approx(math.log(64 / row["tensor"]), abs=0.1)  # ids
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        for part_of_it, planned in row["bytes_planned"].items():
            if part_of_it in ("attention", "activations", "peak", "total") and not cpu_products.has_bf16():
                continue  # fp32 copies of attention's tensors are in them, and are no formula's
            assert row["bytes"][part_of_it] == pytest.approx(planned, rel=0.15), part_of_it
    assert all(row["tokens"] == 128 and row["bound"] == "none beyond 128 is tried" for row in found["longest"])


def test_the_report(output: Path) -> None:
    done = gpu_check("--part", "report", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "A training step" in done.stdout and "Not run: tools/gpu_check.py --part tests." in done.stdout
    assert not (output / "profile.json").exists()  # a CPU has none
    page = (output / "verification.md").read_text()
    assert page.startswith("## On one ") and "| 2 | 1 | 128 | nothing recomputed | " in page
    parts = "weights | gradients | optimizer | buffers | activations | attention | loss | peak"
    assert f"| layers | TP | tokens | {parts} |" in page
    assert "Ceilings of the same run: a product of 64 cubed" in page


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    done = gpu_check("--part", "report", "--output", str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "run the other parts of tools/gpu_check.py first" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gets_one_sentence(tmp_path: Path) -> None:
    done = gpu_check("--output", str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "sees no GPU here" in line
    assert not list(tmp_path.iterdir())


def test_missing_modules_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu_machine, "_WHEELS", {"torch": "torch", "no_such": "'no-such>=1'", "a.b": "a"})
    with pytest.raises(UserError, match=r"no_such, a.b are missing here; .* pip install 'no-such>=1' a\.$"):
        _gpu_machine.check_modules()


def test_an_extension_that_came_with_the_checkout_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu_machine.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    _gpu_machine.ensure_extension(anew=True)
    monkeypatch.setattr(_gpu_machine, "_imports", lambda: False)
    monkeypatch.setattr(_gpu_machine, "_there", lambda name: True)  # pybind11 may be the build's alone
    with pytest.raises(UserError, match="there is no compiler here; install g"):
        _gpu_machine.ensure_extension(anew=True)


TESTS = """
import pytest
gpu = getattr(pytest.mark, "gpu")  # spelt so that this file isn't taken for one with such tests
@gpu
def test_good(): pass
@gpu
def test_bad(): assert 1 == 2, "one is not two"
@gpu
def test_not_here(): pytest.skip("NCCL refuses")
def test_of_something_else(): assert False
"""


def test_results_of_tests_are_read(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    found = _gpu_tests.run_tests([tmp_path / "test_some.py"], "gpu", tmp_path / "out" / "tests.xml", 120)
    assert found["passed"] == 1 and found["seconds"] >= 0
    ((failed, why),) = found["failed"]
    assert failed.endswith("::test_bad") and "one is not two" in why
    ((skipped, why),) = found["skipped"]
    assert skipped.endswith("::test_not_here") and why == "NCCL refuses"
    with pytest.raises(UserError, match="pytest ended with status 5"):
        _gpu_tests.run_tests([tmp_path / "test_some.py"], "no_such_marker", tmp_path / "tests.xml", 120)
    with pytest.raises(UserError, match="took more than 0 s"):
        _gpu_tests.run_tests([tmp_path / "test_some.py"], "gpu", tmp_path / "tests.xml", 0.01)


def test_files_with_tests_for_a_gpu_are_found() -> None:
    names = {path.name for path in _gpu_tests.marked_files()}
    assert {"test_one_device.py", "test_long_rings.py", "test_modules.py", "test_steps.py"} <= names
    assert not {"test_gpus.py", "test_layouts.py", "test_gpu_check.py"} & names


BARE = """
import importlib, importlib.machinery, pathlib, sys
absent, tools, tests = {absent!r}, {tools!r}, {tests!r}
find = importlib.machinery.PathFinder.find_spec
def without(name, path=None, target=None):
    return None if name.split(".")[0] in absent else find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(without)
for name in [path.stem for path in pathlib.Path(tools[0]).glob("_gpu_*.py")] + tests:
    importlib.import_module(name)
"""


def test_nothing_is_imported_but_the_wheels_that_it_names() -> None:
    """Neither by the tool nor by the tests it runs: all of the package's other dependencies are hidden."""
    root = TOOL.parents[1]
    names = [re.split(r"[\[<>=; ]", line)[0] for line in importlib.metadata.requires("megatron-ultralong") or []]
    given = {"torch", "einops", "psutil", "numpy", "orjson", "megatron-core", "tyro", "rich", "pytest"}
    assert {module.split(".")[0] for module in _gpu_machine._WHEELS} == given - {"megatron-core"} | {"megatron"}
    absent = [name.replace("-", "_") for name in names if name not in given]
    assert {"transformers", "tokenizers", "safetensors", "isal"} < set(absent)
    tests = [str(path.relative_to(root).with_suffix("")).replace("/", ".") for path in _gpu_tests.marked_files()]
    program = BARE.format(absent=absent, tools=[str(TOOL.parent)], tests=tests)
    environment = _gpu_machine.environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(TOOL.parent)])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


RESULTS: dict[str, Any] = {
    "commit": "abc",
    "date": "2030-01-02",
    "machine": {
        "name": "NVIDIA H100 80GB HBM3",
        "memory": 8 * 10**10,
        "host_cores": 16,
        "python": "3.12",
        "torch": "2.13.0",
    },
    "seconds": 12.0,
    "found": {
        "ceilings": {
            "matmul_size": 4096,
            "matmul_flops": 7e14,
            "copy_bytes": 10**9,
            "copy_bytes_per_second": 3e12,
        },
        "attention": [
            {"kernel": "flash3", "left_out": "not installed, or not for this device"},
            *(
                {
                    "kernel": kernel,
                    "tokens": 8192,
                    "forward_seconds": seconds,
                    "forward_flops": 1 / seconds,
                    "backward_seconds": 3.0,
                    "backward_flops": 5.0,
                }
                for kernel, seconds in (("cudnn", 1.0), ("torch", 2.0))
            ),
            {"kernel": "torch", "tokens": 16384, "left_out": OUT_OF_MEMORY},
        ],
    },
}


def test_a_profile_has_the_fastest_kernel_and_is_read_again(tmp_path: Path) -> None:
    _gpu_report.add(tmp_path, "measure", RESULTS)
    _gpu_report.report(tmp_path, write_docs=False)
    profile = HardwareProfile.read(tmp_path / "profile.json")
    assert (profile.name, profile.memory) == ("NVIDIA H100 80GB HBM3", 8 * 10**10)
    assert [one.rate for one in profile.matmul] == [7e14] and [one.rate for one in profile.copy] == [3e12]
    assert profile.like == "h100" and profile.links  # no single GPU measures those
    ((tokens, forward, backward),) = [(rate.tokens, rate.forward, rate.backward) for rate in profile.attention]
    assert (tokens, forward, backward) == (8192, 1.0, 5.0)
    page = (tmp_path / "verification.md").read_text()
    assert "| torch | 16,384 |  |  | out of memory |" in page and "commit abc, 2030-01-02" in page


def test_results_of_another_commit_are_not_mixed(tmp_path: Path) -> None:
    _gpu_report.add(tmp_path, "measure", RESULTS)
    _gpu_report.add(tmp_path, "tests", {**RESULTS, "found": {}})
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"measure", "tests"}
    _gpu_report.add(tmp_path, "tests", {**RESULTS, "commit": "def", "found": {}})
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"tests"}


def test_a_section_takes_the_place_of_an_earlier_one() -> None:
    page = "# V\n\n## On one X\nold\n\n- old\n\n## Other\ntext\n"
    once = _gpu_report.with_section(page, "## On one X\nnew\n")
    assert once == "# V\n\n## Other\ntext\n\n## On one X\nnew\n"
    assert _gpu_report.with_section(once, "## On one X\nnew\n") == once
