"""One sample, and one rank's slice of one, from mapped tokens: ours against megatron-core's GPTDataset.

    python tests/benchmarks/bench_gather.py

The same random corpus of short documents for both. Every sample is read once ("first": most of a slice's pages are not
mapped yet; most of a whole sample's are after the first one, the corpus being small) and then again ("again"); medians
over the samples, in milliseconds. What bounds it is measured beside it: numpy widening as many tokens in one piece.
"""

from __future__ import annotations

import argparse
import logging
import mmap
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from corpora import gpt_dataset, median, seconds, write_corpus
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.dataset import PackedDataset

CP = 16


class Group:
    """What get_batch_on_this_cp_rank asks of a process group."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return CP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 26)
    parser.add_argument("--mean", type=int, default=1000, help="tokens of a document")
    parser.add_argument("--vocab-size", type=int, default=128_256, help="under 65,500: two bytes a token on disk")
    parser.add_argument("--folder", help="where the files go")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.folder) as folder:
        prefix = Path(folder) / "corpus"
        random = np.random.default_rng(0)
        lengths = np.maximum(random.exponential(arguments.mean, arguments.tokens // arguments.mean), 1).astype(np.int64)
        write_corpus(prefix, lengths, arguments.vocab_size, seed=1)
        width = open_corpus(prefix).tokens.tokens.itemsize
        print(f"{len(lengths):,} documents, {int(lengths.sum()):,} tokens of {width} bytes on disk")
        whole(prefix, 1 << 20)
        whole(prefix, 1 << 22)
        sliced(prefix, 1 << 22)


def open_both(prefix, length):
    cache, packed = prefix.parent / "cache", prefix.parent / "packed"
    corpus = open_corpus(prefix)
    write_packed_index(corpus, packed, PackOptions(sequence_length=length, shuffle_seed=1))
    shutil.rmtree(cache, ignore_errors=True)
    return gpt_dataset(prefix, length, corpus.vocab_size, cache)(), PackedDataset(packed)


def floor(prefix, length):
    """Seconds to widen as many tokens in one piece: first and second time that part of the file is touched."""
    tokens = open_corpus(prefix).tokens.tokens
    times = timed(lambda i: tokens[i * length : (i + 1) * length].astype(np.int64), len(tokens) // length)
    moved = (tokens.itemsize + 8) * length
    rates = ", ".join(f"{moved / time / 1e9:.1f} GB/s" for time in times)
    line(f"bound: numpy widens {length:,} tokens", times)
    print(f"    = {rates} read and written")
    return times


def timed(function, count):
    """Medians of the first and the second reading of each of `count` samples, in seconds."""
    function(0)  # what is made once
    return tuple(median([seconds(lambda i=i: function(i)) for i in range(1, count)]) for _ in range(2))


def unmapped(ours, function, count):
    """Median with the page tables of the mapped tokens emptied before every reading, in seconds."""
    mapped = ours.index.corpus.tokens.tokens._mmap

    def once(i):
        mapped.madvise(mmap.MADV_DONTNEED)
        return seconds(lambda: function(i))

    return median([once(i) for i in range(1, count)])


def line(name, times, reference=None):
    pairs = [] if reference is None else zip(reference, times, strict=True)
    ratios = "  ".join(f"{slow / fast:6.1f}x" for slow, fast in pairs)
    print(f"  {name:<44} first {times[0] * 1e3:8.3f} ms, again {times[1] * 1e3:8.3f} ms  {ratios}")
    return times


def whole(prefix, length):
    print(f"one whole sample of {length:,} tokens (asked for: 5x)")
    theirs, ours = open_both(prefix, length)
    count = min(len(ours), len(theirs))
    slow = line("GPTDataset[i]", timed(theirs.__getitem__, count))
    fast = line("PackedDataset[i]", timed(ours.read, count), slow)
    masked = PackedDataset(prefix.parent / "packed", document_mask=True)
    line("PackedDataset[i], document mask", timed(masked.read, count), slow)
    bound = floor(prefix, length)
    print(f"    ours takes {fast[0] / bound[0]:.1f} (again {fast[1] / bound[1]:.1f}) times the bound")


def sliced(prefix, length):
    print(f"a CP {CP} slice of a sample of {length:,} tokens (asked for: 1/10 of the whole, 50x)")
    theirs, ours = open_both(prefix, length)
    count = min(len(ours), len(theirs))
    whole = (*line("PackedDataset[i], whole", timed(ours.read, count)), unmapped(ours, ours.read, count))
    for rank in (0, CP // 2, CP - 1):
        one_rank(prefix, theirs, whole, length, rank)
    floor(prefix, length // CP)


def one_rank(prefix, theirs, whole, length, rank):
    ours = PackedDataset(prefix.parent / "packed")  # its pages are not mapped yet
    count, spans = min(len(ours), len(theirs)), zigzag.spans(length, rank, CP)

    def their_slice(i):
        batch = {name: value.unsqueeze(0) for name, value in theirs[i].items()}
        return get_batch_on_this_cp_rank(batch, Group(rank))

    slow = line(f"GPTDataset[i], then the slice of rank {rank}", timed(their_slice, count))
    fast = line(f"PackedDataset.read(i, spans of rank {rank})", timed(lambda i: ours.read(i, spans), count), slow)
    tokens = sum(end - begin + 1 for begin, end in spans)
    print(
        f"    {tokens:,} tokens read: 1/{length / tokens:.2f} of the whole, in 1/{whole[0] / fast[0]:.1f} "
        f"(again 1/{whole[1] / fast[1]:.1f}) of the time"
    )
    bare = unmapped(ours, lambda i: ours.read(i, spans), count)
    print(f"    nothing mapped: {bare * 1e3:.3f} ms, 1/{whole[2] / bare:.1f} of the whole's {whole[2] * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
