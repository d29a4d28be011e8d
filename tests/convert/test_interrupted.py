"""Killed at any moment, or out of room: nothing that looks like a checkpoint is left, and a rerun succeeds."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from tests.convert.test_round_trip import assert_same, weights
from tests.convert.tiny_models import Build

ROOT = Path(__file__).parents[2]
WIDE = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 4000, "num_hidden_layers": 8}
"""137 MB in fp32: half a second of work to be killed in."""
FORKED = """
import os, signal, sys, torch
from pathlib import Path
from typing import Any
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
import torch.distributed.checkpoint
for line in sys.stdin:
    tool, source, output = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        if tool == "in":
            convert_hf_to_megatron(hf=Path(source), output=Path(output))
        else:
            convert_megatron_to_hf(load=Path(source), output=Path(output))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Converts in a forked child, whose number it says first, so that a kill hits the work and not the imports."""


def test_killed_at_ten_moments(build: Build, tmp_path: Path) -> None:
    source, load = build("llama", **WIDE), tmp_path / "m"
    convert_hf_to_megatron(hf=source, output=load)
    moments = random.Random(3)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-c", FORKED], text=True, **pipes)

    def convert(tool: str, output: Path, kill_after: float | None) -> tuple[float, int]:
        assert server.stdin is not None and server.stdout is not None
        given = source if tool == "in" else load
        server.stdin.write(f"{tool}\t{given}\t{output}\n")
        server.stdin.flush()
        child, start = int(server.stdout.readline()), time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was faster than the time before
                os.kill(child, signal.SIGKILL)
        status = int(server.stdout.readline())
        return time.monotonic() - start, status

    whole = {tool: convert(tool, tmp_path / f"whole-{tool}", None)[0] for tool in ("in", "out")}
    killed, number = 0, -1
    while killed < 10:
        number += 1
        assert number < 60, "conversions end before they can be killed"
        tool = ("in", "out")[number % 2]
        output = tmp_path / f"{tool}-{number}"
        _, status = convert(tool, output, moments.uniform(0, 0.9) * whole[tool])
        if status != 0:
            killed += 1
            assert not output.exists()
        visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
        assert output.name not in visible or status == 0
        if not output.exists():
            assert convert(tool, output, None)[1] == 0
    assert server.stdin is not None
    server.stdin.close()
    server.wait()
    for odd in range(1, number + 1, 2):
        assert_same(weights(source), weights(tmp_path / f"out-{odd}"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def tool(name: str, *words: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool, by choice with no file above `limit` bytes."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=restrict)


def test_a_disk_too_small_is_said_before_and_while_it_is_written(
    build: Build, tmp_path: Path, small_disk: Path
) -> None:
    source = build("llama", hidden_size=128, intermediate_size=256, vocab_size=1000, num_hidden_layers=2)
    done = tool("convert_hf_to_megatron", "--hf", source, "--output", small_disk / "m")
    assert done.returncode == 2
    assert f"error: {small_disk / 'm'} takes 2.21 MB, but 1.05 MB are free there" in done.stderr
    # Room for the weights as announced, and not for the pages and the descriptions around them.
    smaller = build("llama", hidden_size=64, intermediate_size=128, vocab_size=500, num_hidden_layers=2)
    size = sum(tensor.numel() * 4 for tensor in weights(smaller).values())
    (small_disk / "other").write_bytes(bytes((os.statvfs(small_disk).f_bavail - size // 4096 - 1) * 4096))
    done = tool("convert_hf_to_megatron", "--hf", smaller, "--output", small_disk / "m")
    assert done.returncode == 2, done.stderr
    assert f"error: {small_disk / 'm'}: cannot be written (No space left on device); free space" in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["other"]


@pytest.mark.parametrize("limit", [1000, 60_000])
def test_a_file_that_cannot_grow_is_one_sentence(build: Build, tmp_path: Path, limit: int) -> None:
    source, load = build("llama", torch.bfloat16, hidden_size=128, vocab_size=1000), tmp_path / "m"
    done = tool("convert_hf_to_megatron", "--hf", source, "--output", load, limit=limit)
    assert done.returncode == 2
    assert f"error: {load}: cannot be written (File too large); free space or give another --output" in done.stderr
    convert_hf_to_megatron(hf=source, output=load)
    done = tool("convert_megatron_to_hf", "--load", load, "--output", tmp_path / "hf", limit=limit)
    assert done.returncode == 2
    assert f"error: {tmp_path / 'hf'}: cannot be written (File too large)" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
