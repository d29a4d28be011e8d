"""Corpora of a given shape for the benchmarks, and megatron-core's GPTDataset over the same files."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split

from megatron_ultralong.data.corpus.corpus import (
    VERSION,
    combined_fingerprint,
    manifest_path,
    sources_path,
    token_files,
)
from megatron_ultralong.data.corpus.indexed_dataset import IndexedWriter, bin_path, idx_path, token_dtype


def write_corpus(prefix: Path, lengths: np.ndarray, vocab_size: int, seed: int | None) -> None:
    """A corpus of random tokens; seed None: of zeros that take no room on the disk (lengths are what matters)."""
    dtype = token_dtype(vocab_size)
    with bin_path(prefix).open("wb") as stream:
        writer = IndexedWriter(stream, dtype)
        if seed is None:
            stream.truncate(int(lengths.sum()) * dtype.itemsize)
            writer._lengths.frombytes(lengths.astype(np.int32).tobytes())
        else:
            random = np.random.default_rng(seed)
            for block in np.array_split(lengths, 64):
                writer.add(random.integers(1, vocab_size, int(block.sum()), dtype=np.int64), block)
    writer.write_index(idx_path(prefix))
    np.save(sources_path(prefix), np.zeros(len(lengths), dtype=np.int32))
    manifest = {
        "version": VERSION,
        "kind": "text",
        "sources": ["web"],
        "tokenizer_fingerprint": "none",
        "vocab_size": vocab_size,
        "tokens_fingerprint": combined_fingerprint(token_files(prefix, "text")),
    }
    manifest_path(prefix).write_text(json.dumps(manifest))


class NoTokenizer:
    """What GPTDataset asks of a tokenizer."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.unique_identifiers = collections.OrderedDict(name="none")
        self.special_tokens_dict: dict[str, str] = {}
        self.eod = self.eos = self.bos = -2
        self.pad = -1


def gpt_dataset(prefix: Path, sequence_length: int, vocab_size: int, cache: Path) -> Callable[[], GPTDataset]:
    """A function that builds megatron-core's dataset of one epoch over the (opened) corpus, and saves it in `cache`."""
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=sequence_length,
        blend=([str(prefix)], None),
        split="1",
        path_to_cache=str(cache),
        tokenizer=NoTokenizer(vocab_size),
        allow_ambiguous_pad_tokens=True,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    low = GPTDataset.build_low_level_dataset(str(prefix), config)
    documents = np.arange(low.sequence_lengths.shape[0], dtype=np.int32)
    return lambda: GPTDataset(low, str(prefix), documents, None, Split.train, config)


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def best(function: Callable[[], Any], repeats: int = 3) -> float:
    """The shortest of a few calls, in seconds."""
    return min(seconds(function) for _ in range(repeats))


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]
