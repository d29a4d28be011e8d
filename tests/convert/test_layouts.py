"""A converted checkpoint under every layout: megatron-core loads it, computes transformers' logits, saves it again
under that layout, and the export is the source bit for bit. The vocabulary of 101 is padded for TP 2 and 4."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from tests.convert.test_round_trip import assert_same, weights
from tests.convert.tiny_models import FAMILIES, Build

SIZES = {"num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}
LAYOUTS: dict[str, tuple[int, dict[str, int], int]] = {
    "TP 1, DP 4": (4, {}, 1),
    "TP 2, DP 2": (4, {"tensor": 2}, 1),
    "TP 4": (4, {"tensor": 4}, 1),
    "PP 2, DP 2": (4, {"pipeline": 2}, 1),
    "TP 2, PP 2": (4, {"tensor": 2, "pipeline": 2}, 1),
    "TP 2, CP 2": (4, {"tensor": 2, "context": 2}, 1),
    "PP 2 of 3 chunks each": (4, {"pipeline": 2}, 3),
    "PP 3": (3, {"pipeline": 3}, 1),
    "PP 3 of 2 chunks each": (3, {"pipeline": 3}, 2),
}
"""Processes, sizes, virtual pipeline chunks a rank."""
EVERY_FAMILY = ("TP 1, DP 4", "TP 2, DP 2", "TP 4", "PP 2, DP 2", "PP 3")


@pytest.fixture(scope="module")
def loaded(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with FAMILY.DTYPE/hf, and LAYOUT.FAMILY.DTYPE saved again by megatron-core; every assertion of
    layouts.py held."""
    root = tmp_path_factory.mktemp("layouts")
    jobs: dict[int, list[dict[str, Any]]] = {3: [], 4: []}
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{family}.{str(dtype)[6:]}"
            source = build(family, dtype, **SIZES)
            convert_hf_to_megatron(hf=source, output=root / name / "megatron")
            (root / name / "hf").symlink_to(source)
            if dtype == torch.float32:
                save_logits(source, root / name / "logits.safetensors")
            for layout, (processes, parallel, chunks) in LAYOUTS.items():
                if not wanted(layout, family, dtype):
                    continue
                job = {
                    "load": str(root / name / "megatron"),
                    "save": str(root / f"{layout}.{name}"),
                    "parallel": parallel,
                    "chunks": chunks,
                    "bf16": dtype == torch.bfloat16,
                }
                if dtype == torch.float32:
                    job["logits"] = str(root / name / "logits.safetensors")
                jobs[processes].append(job)
    for processes, some in jobs.items():
        (root / "jobs.json").write_text(json.dumps(some))
        launch(processes, root / "jobs.json")
    return root


def wanted(layout: str, family: str, dtype: torch.dtype) -> bool:
    """Every family under TP 1, 2, 4 and PP 1, 2, 3 in fp32; what else there is, with one family."""
    if dtype == torch.bfloat16:
        return layout in ("TP 4", "PP 3")
    return layout in EVERY_FAMILY or family in ("llama", "llama-tied")


def save_logits(source: Path, path: Path) -> None:
    tokens = torch.randint(101, (24,), generator=torch.Generator().manual_seed(2))
    model = transformers.AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False)
    with torch.no_grad():
        save_file({"tokens": tokens, "logits": model(tokens[None]).logits[0].contiguous()}, path)


def launch(processes: int, jobs: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    script = str(Path(__file__).parent / "layouts.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    log = jobs.with_suffix(".log")  # no pipe: what a lost rank had started would keep it open
    with log.open("w") as stream:
        command = [sys.executable, *words, script, str(jobs)]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, timeout=400)
    assert done.returncode == 0, log.read_text()[-4000:]


@pytest.mark.gloo
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loads_computes_and_returns_bit_for_bit(
    loaded: Path, tmp_path: Path, layout: str, family: str, dtype: str
) -> None:
    if not wanted(layout, family, getattr(torch, dtype)):
        pytest.skip("covered by other families")
    convert_megatron_to_hf(load=loaded / f"{layout}.{family}.{dtype}", output=tmp_path / "hf")
    assert_same(weights(loaded / f"{family}.{dtype}" / "hf"), weights(tmp_path / "hf"))
