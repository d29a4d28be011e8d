"""A synthetic Llama of gigabytes, written by rows, and tools run on it with their peak memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from megatron_ultralong.convert.formats.hf_folder import plan_shards, write_index
from megatron_ultralong.convert.formats.row_stream import cut
from megatron_ultralong.convert.formats.safetensors_file import Writer
from megatron_ultralong.convert.parameter_mapping import Table

ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
"""Llama-3-8B with 5 of its 32 layers: 4.3 GB in bf16, of which the largest tensor takes 1.05."""
LARGEST = 128256 * 4096 * 2


def build_large(folder: Path, shard: int = 1_000_000_000) -> int:
    """Write the model's files, every value of them finite and no two blocks the same; returns bytes of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = Table.from_hf(CONFIG).hf_shapes
    sizes = {name: 2 * int(torch.Size(shape).numel()) for name, shape in shapes.items()}
    shards = plan_shards(sizes, shard)
    generator, number = torch.Generator().manual_seed(0), 0
    base = torch.randint(-(2**15), 2**15, (4 << 20,), generator=generator, dtype=torch.int16)
    for file, names in shards.items():
        with Writer(folder / file, {name: (shapes[name], torch.bfloat16) for name in names}) as out:
            for name in names:
                width = int(torch.Size(shapes[name][1:]).numel())
                for start, stop in cut(shapes[name][0], 2 * width):
                    number += 1
                    values = (base[: (stop - start) * width] ^ number) & -16385  # no exponent of NaN or infinity
                    out.add(name, values.view(torch.bfloat16).view(stop - start, *shapes[name][1:]))
    write_index(folder, shards, sum(sizes.values()))
    return sum(sizes.values())


def settle() -> None:
    """Nothing is left to write, and the memory of what was deleted is free for every run alike."""
    os.sync()
    time.sleep(5)


def copy(source: Path, target: Path) -> float:
    """Copy a folder's files plainly, onto the disk; returns seconds. The copy is removed."""
    settle()
    start = time.monotonic()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in target.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    elapsed = time.monotonic() - start
    shutil.rmtree(target)
    return elapsed


def run_tool(name: str, *words: str, folder: Path) -> tuple[float, int]:
    """Run tools/NAME in `folder`; returns seconds and the peak resident bytes of the process. Its `out` is removed."""
    settle()
    command = [sys.executable, str(ROOT / "tools" / name), *words]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    shutil.rmtree(folder / "out", ignore_errors=True)
    return elapsed, usage.ru_maxrss * 1024
