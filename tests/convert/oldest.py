"""The oldest transformers that pyproject.toml allows, beside the installed one: tests run it in a process of its own.

A folder that `pip install --target` made: ULTRALONG_OLDEST_TRANSFORMERS names one; else it is made once below build/,
where pip can.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NEEDS = ("tokenizers<0.23.1", "huggingface-hub<1")
"""What transformers of that age wants older than the newest does."""


def version() -> str:
    """The lower bound in pyproject.toml, as a release."""
    found = re.search(r'"transformers>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1] + ".0" * (2 - found[1].count("."))


def folder() -> Path:
    """Where it is; skips the test where it cannot be had."""
    if given := os.environ.get("ULTRALONG_OLDEST_TRANSFORMERS"):
        return Path(given)
    target = ROOT / "build" / f"transformers-{version()}"
    if not target.is_dir():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as made:
            words = ["-m", "pip", "install", "-q", "--no-deps", "--target", f"{made}/t"]
            command = [sys.executable, *words, f"transformers=={version()}", *NEEDS]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                pytest.skip(f"transformers {version()} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
            if not target.is_dir():
                shutil.move(f"{made}/t", target)
    return target


def run(jobs: list[dict[str, Any]]) -> list[Any]:
    """What tests/convert/loaded.py makes of `jobs` under the oldest transformers."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder()), str(ROOT))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.convert.loaded"],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert answer["version"] == version()
    return list(answer["results"])
