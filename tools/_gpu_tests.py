"""The tests marked gpu, run by pytest in a process of its own, and what came of them."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _gpu_machine import ROOT, environment

from megatron_ultralong.errors import UserError

_MARK = re.compile(r"\bmark\.gpu\b")
_FAILED, _PASSED = 1, 0  # pytest's exit statuses


def marked_files() -> list[Path]:
    """The files with tests marked gpu, by themselves or by a fixture of their folder.

    Those alone are imported, for the others need packages that may be absent.
    """

    def marks(path: Path) -> bool:
        return path.exists() and _MARK.search(path.read_text("utf-8")) is not None

    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in found if marks(path) or marks(path.with_name("conftest.py"))]


def run_tests(files: Sequence[Path], expression: str, xml: Path, limit: float) -> dict[str, Any]:
    """Run tests, their output to the terminal.

    Args:
        files: test files.
        expression: of markers, as `pytest -m` takes it.
        xml: where pytest's JUnit file goes.
        limit: seconds; what has not ended by then is killed.

    Returns:
        Counts, seconds, and each test that failed or was skipped with its first line of why.

    Raises:
        UserError: the tests could not be run, or took too long.
    """
    xml.parent.mkdir(parents=True, exist_ok=True)
    xml.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", expression]
    words += [f"--junitxml={xml}", *map(str, files)]
    try:
        done = subprocess.run(words, cwd=ROOT, env=environment(), timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"The tests took more than {limit:.0f} s and were ended; give more by --limit.") from None
    if done.returncode not in (_PASSED, _FAILED) or not xml.exists():
        raise UserError(f"pytest ended with status {done.returncode} and no results; its lines above say why.")
    return read_results(xml)


def read_results(xml: Path) -> dict[str, Any]:
    """What a JUnit file of pytest's says."""
    suites = ElementTree.parse(xml).getroot()
    found: dict[str, Any] = {"passed": 0, "failed": [], "skipped": [], "seconds": 0.0}
    for case in suites.iter("testcase"):
        found["seconds"] += float(case.get("time", "0"))
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if bad:
            found["failed"].append([name, _first_line(bad[0])])
        elif skipped is not None:
            found["skipped"].append([name, _first_line(skipped)])
        else:
            found["passed"] += 1
    return found


def _first_line(element: ElementTree.Element) -> str:
    return (element.get("message") or element.text or "").strip().split("\n")[0][:300]
