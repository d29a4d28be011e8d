"""Build the extension with AddressSanitizer and UBSan, and run the packing tests and the fuzzer with it.

    python tests/fuzz/sanitize.py            (make sanitize)

The build goes to build/sanitize; the extension in the package is left alone. Needs GCC's libasan. Any report of a
sanitizer ends the tests with a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "sanitize"
TESTS = (
    "packing/test_specification",
    "packing/test_index",
    "reading/test_dataset",
    "reading/test_blend",
    "test_shuffle",
)
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"

# Puts the sanitized extension in the place of the package's own, then runs what follows.
PROGRAM = """
import importlib.util, runpy, sys
from pathlib import Path
(path,) = Path(sys.argv[1]).rglob("_packing*.so")
spec = importlib.util.spec_from_file_location("megatron_ultralong.data.packing._packing", path)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
from megatron_ultralong.data import shuffle
assert shuffle._packing is module, "the sanitized extension is not the one in use"
sys.argv = sys.argv[2:]
if sys.argv[0] == "pytest":
    import pytest
    sys.exit(pytest.main(sys.argv[1:]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def library(name: str) -> str:
    """Where GCC keeps one of its libraries."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    if not Path(path).is_file():
        sys.exit(f"{name}: GCC has none here; install its sanitizer libraries.")
    return path


def main() -> None:
    environment = {**os.environ, "CFLAGS": FLAGS, "CXXFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address,undefined"}
    build = ["build_ext", "--force", "--build-lib", str(BUILD / "lib"), "--build-temp", str(BUILD / "temp")]
    subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, env=environment, check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        # CPython itself never frees everything, and numpy may ask for more than there is.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",  # so that arrays are AddressSanitizer's to watch
        "PYTHONPATH": str(ROOT),
    }
    tests = [str(ROOT / "tests" / "data" / f"{name}.py") for name in TESTS]
    seconds = sys.argv[1] if len(sys.argv) > 1 else "30"
    for words in (
        ["pytest", "-q", "-p", "no:cacheprovider", *tests],
        [str(ROOT / "tests" / "fuzz" / "fuzz_packing.py"), "--seconds", seconds],
    ):
        command = [sys.executable, "-c", PROGRAM, str(BUILD / "lib"), *words]
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if status:
            sys.exit(status if status > 0 else 1)
    print("no sanitizer found anything")


if __name__ == "__main__":
    main()
