"""The fuzzer for a second in every run of the tests; the sanitizers, which build for a minute, on request (slow)."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_two_hundred_rounds():
    words = [sys.executable, str(HERE / "fuzz_packing.py"), "--rounds", "200", "--seconds", "60"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=HERE.parents[1], check=False)
    assert done.returncode == 0 and "no difference, no crash" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_sanitizers_find_nothing():
    words = [sys.executable, str(HERE / "sanitize.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("no sanitizer found anything\n"), done.stdout + done.stderr
