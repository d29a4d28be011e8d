"""Threads that read one checkpoint at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.convert.formats.torch_dist import Reader
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from tests.convert.tiny_models import Build

KEY = "decoder.layers.self_attention.linear_qkv.weight"


class Slow(list[Any]):
    """Whoever looks through it first waits, before the first piece, until another thread has read."""

    begun, read, waiting = threading.Event(), threading.Event(), threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        if self.waiting.acquire(blocking=False):
            self.begun.set()
            assert self.read.wait(60)
        return super().__iter__()


def test_a_thread_does_not_see_half_of_anothers_pieces(build: Build, tmp_path: Path) -> None:
    """It said that the pieces don't cover the tensor, and of a whole checkpoint to copy it again."""
    convert_hf_to_megatron(hf=build("llama"), output=tmp_path / "megatron")
    reader = Reader(tmp_path / "megatron")
    rows = reader.tensors[KEY].size[1]
    wanted = Reader(tmp_path / "megatron").rows(KEY, 0, rows, 1)
    pieces = Slow(reader.tensors[KEY].chunks)
    reader.tensors[KEY].chunks = pieces
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: reader.rows(KEY, 0, rows, 1).clone())
        assert pieces.begun.wait(60)
        try:
            found = reader.rows(KEY, 0, rows, 1)
        finally:
            pieces.read.set()
        assert torch.equal(found, wanted) and torch.equal(first.result(), wanted)
