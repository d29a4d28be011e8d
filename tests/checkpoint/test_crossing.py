"""A run's checkpoint written under one megatron-core and loaded under another: nothing of it changes.

OTHER_MEGATRON_CORE names a folder that holds another version's `megatron` (tests/newest.sh makes one).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_ultralong.convert.formats.torch_dist import Reader
from tests.training.conftest import workspace

OTHER = os.environ.get("OTHER_MEGATRON_CORE", "")
OWN = os.environ.get("PYTHONPATH", "")
ROOT = Path(__file__).parents[2]

__all__ = ["workspace"]


def under(place: str, module: str, workspace: Path, *words: str) -> str:
    """Run a module of one process with `place` first on its path; which megatron-core that is."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [place, str(ROOT), OWN]))}
    command = [sys.executable, "-W", "ignore", "-m", module, "--config", str(workspace / "run.toml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    say = [sys.executable, "-W", "ignore", "-c", "import megatron.core; print(megatron.core.__version__)"]
    return subprocess.run(say, capture_output=True, text=True, env=environment, check=True).stdout.split()[-1]


@pytest.mark.skipif(not OTHER, reason="OTHER_MEGATRON_CORE names no other version; make test-newest does")
@pytest.mark.parametrize("places", [("", OTHER), (OTHER, "")], ids=["to the other", "from the other"])
def test_a_checkpoint_crosses_versions_bit_for_bit(workspace: Path, tmp_path: Path, places: tuple[str, str]) -> None:
    save = tmp_path / "run"
    words = ["--train.precision", "bf16", "--parallel.distributed_optimizer", "true", "--train.steps", "2"]
    words += ["--checkpoint.save", str(save)]
    first = under(places[0], "megatron_ultralong.train", workspace, *words)
    second = under(places[1], "tests.checkpoint.resave", workspace, *words)
    assert first != second
    before, after = Reader(save / "step_000002"), Reader(save / "again")
    assert before.tensors.keys() == after.tensors.keys() and len(before.tensors) > 30
    for key, described in before.tensors.items():
        rows = described.size[0] if described.size else 1
        old = before.rows(key, 0, rows).clone()
        assert torch.equal(old.view(torch.uint8), after.rows(key, 0, rows).view(torch.uint8)), key
    common = [torch.load(reader.folder / "common.pt", weights_only=True) for reader in (before, after)]
    assert common[0] == common[1] and common[0]["step"] == 2
    shutil.rmtree(save / "again")
    under(places[1], "megatron_ultralong.train", workspace, *words, "--train.steps", "3")
    assert json.loads((save / "step_000003" / "ultralong.json").read_text())["step"] == 3
