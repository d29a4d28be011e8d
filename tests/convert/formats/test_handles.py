"""Many files, few of them open: also where a process may open 64."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from megatron_ultralong.convert.formats.handles import Handles, limit
from megatron_ultralong.convert.formats.row_stream import Files
from tests.convert.test_round_trip import assert_same, weights
from tests.convert.tiny_models import Build

ROOT = Path(__file__).parents[3]
CONVERT = """
import resource, sys
from pathlib import Path
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
root, source = Path(sys.argv[1]), Path(sys.argv[2])
names = [root / f"m{number}" for number in range(3)]
for name in names:
    convert_hf_to_megatron(hf=source, output=name)
convert_megatron_to_hf(load=names[0], average=tuple(names[1:]), output=root / "mean", max_shard_size=3e-6)
"""


def test_the_longest_unused_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ultralong.convert.formats.handles._MOST", 3)
    assert limit() == 3
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_text(path.name)
    handles = Handles()
    with handles.opened(paths[0]) as first:
        for path in (*paths, paths[1]):
            with handles.opened(path) as descriptor:
                assert os.pread(descriptor, 9, 0) == path.name.encode()
        assert os.pread(first, 9, 0) == b"0"  # it is in use: it stays
    assert list(handles.open) == [paths[0], paths[4], paths[1]]
    descriptors = list(handles.open.values())
    del handles
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_threads_read_what_they_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ultralong.convert.formats.handles._MOST", 2)
    for number in range(20):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 4096)
    files = Files()

    def right(number: int) -> bool:
        number %= 20
        return bool((files.read(tmp_path / str(number), 0, torch.uint8, (4096,)) == number).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(right, range(4000)))
    assert len(files.handles.open) <= 8


def test_many_files_under_a_limit_of_64(build: Build, tmp_path: Path) -> None:
    source = build("llama", num_hidden_layers=60)
    assert len(list(source.glob("*.safetensors"))) > 64
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, tmp_path, source], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert min(len(list((tmp_path / f"m{number}").glob("*.distcp"))) for number in range(3)) == 62
    assert_same(weights(source), weights(tmp_path / "mean"))


def test_too_many_open_files_is_no_damage(tmp_path: Path) -> None:
    code = """
import os, resource, sys
from pathlib import Path
import torch
from megatron_ultralong.convert.formats.row_stream import Files
from megatron_ultralong.errors import UserError
path = Path(sys.argv[1])
taken = os.open(path, os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, taken + 1))
try:
    Files().read(path, 0, torch.uint8, (1,))
except UserError as error:
    print(error)
"""
    (tmp_path / "a").write_text("a")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path / 'a'} cannot be read (Too many open files); raise the limit with ulimit -n.\n"
