"""What tools/gpu_check.py needs of a machine: modules, a device, the C++ extension; and what machine it is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from megatron_ultralong.errors import UserError

ROOT = Path(__file__).parents[1]
_WHEELS = {  # module: what pip installs it by; of the package's dependencies these alone
    "torch": "torch",
    "numpy": "numpy",
    "megatron.core": "'megatron-core>=0.16.1,<0.17'",
    "einops": "einops",
    "psutil": "psutil",
    "orjson": "orjson",
    "tyro": "'tyro>=1.0'",
    "rich": "rich",
    "pytest": "'pytest>=8'",
}
_BUILDING = {"pybind11": "'pybind11>=2.13'", "setuptools": "'setuptools>=77'"}


def check_modules() -> None:
    """Raise a UserError that names every module that is missing, and the command that installs them."""
    _check(_WHEELS)


def _check(wheels: dict[str, str]) -> None:
    missing = [module for module in wheels if not _there(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        packages = " ".join(wheels[module] for module in missing)
        raise UserError(f"{', '.join(missing)} {verb} missing here; install with python -m pip install {packages}.")


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a parent is missing, or was taken out
        return False


def check_device(device: Literal["gpu", "cpu"]) -> None:
    """Raise a UserError where there is no GPU."""
    import torch

    if device == "gpu" and not torch.cuda.is_available():
        raise UserError(
            f"PyTorch {torch.__version__} sees no GPU here, and tools/gpu_check.py measures one; "
            "run it on a machine that has one, with a CUDA build of PyTorch."
        )


def ensure_extension(anew: bool) -> None:
    """Build the C++ extension in place, or with `anew` False only where there is none that fits.

    Raises:
        UserError: pybind11 or a compiler is missing, or the build fails.
    """
    if not anew and _imports():
        return
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None or not all(map(_there, _BUILDING)):
        if _imports():  # it came with the checkout
            return
        _check(_BUILDING)
        raise UserError("The C++ extension has to be built, and there is no compiler here; install g++, or set CXX.")
    words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()
        raise UserError(f"The C++ extension cannot be built ({said[-1][:300]}); mend that: {' '.join(words[1:])}.")


def _imports() -> bool:
    """In a process of its own: what failed to import once would be in this one's way."""
    words = [sys.executable, "-c", "import megatron_ultralong.data.packing"]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, check=False).returncode == 0


def environment() -> dict[str, str]:
    """This process's, in which Python finds this checkout whether or not the package is installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def describe(device: Literal["gpu", "cpu"]) -> dict[str, Any]:
    """The device, its memory, and the versions that its numbers depend on."""
    import torch

    found: dict[str, Any] = {
        "name": platform.processor() or platform.machine(),
        "memory": 0,
        "count": 0,
        "host_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in ("megatron-core", "triton", "flash-attn", "flash-attn-3", "transformer-engine"):
        found[package] = _version(package)
    if device == "gpu":
        properties = torch.cuda.get_device_properties(0)
        nccl: Any = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else ()
        found |= {
            "name": properties.name,
            "memory": properties.total_memory,
            "count": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, nccl)),
        }
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
