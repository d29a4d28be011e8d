"""From the lengths of documents to a shuffled, saved index: ours against megatron-core's GPTDataset on the same files.

    python tests/benchmarks/bench_index.py

Both read the same .idx (the .bin is a sparse file: nothing but lengths matters), shuffle documents and samples, build
the sample index and write everything to the same disk. Prints milliseconds and ratios, and what bounds ours.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
from corpora import best, gpt_dataset, write_corpus

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing import _packing
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.shuffle import key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--mean", type=int, default=1400, help="tokens of a document")
    parser.add_argument("--lengths", type=int, nargs="+", default=[131_072, 1_048_576])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where the files go")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.folder) as folder:
        prefix = Path(folder) / "corpus"
        spread = np.random.default_rng(0).lognormal(0, 1.2, arguments.documents)
        lengths = np.maximum(spread * (arguments.mean / spread.mean()), 1).astype(np.int64)
        write_corpus(prefix, lengths, 128_256, seed=None)
        corpus = open_corpus(prefix)
        print(f"{arguments.documents:,} documents, {int(lengths.sum()):,} tokens; best of {arguments.repeats}")
        for length in arguments.lengths:
            compare(prefix, corpus, length, arguments.repeats)
        parts(corpus, arguments.lengths, arguments.repeats)


def compare(prefix, corpus, length, repeats):
    cache, packed = prefix.parent / "cache", prefix.parent / "packed"

    build = gpt_dataset(prefix, length, corpus.vocab_size, cache)

    def theirs():
        shutil.rmtree(cache, ignore_errors=True)
        dataset = build()
        assert len(list(cache.iterdir())) == 4  # description and three indexes
        return len(dataset)

    def ours():
        manifest = write_packed_index(corpus, packed, PackOptions(sequence_length=length, shuffle_seed=1))
        _packing.permutation(manifest["samples"], key(1, "epoch", 0, 0))  # the blend's shuffle of the samples
        return manifest["samples"]

    assert theirs() == ours()
    slow, fast = best(theirs, repeats), best(ours, repeats)
    print(
        f"{length:>9,}: megatron-core {slow * 1e3:7.0f} ms, ours {fast * 1e3:6.0f} ms: {slow / fast:4.1f}x "
        "(asked for: 3x)"
    )


def parts(corpus, sequence_lengths, repeats):
    """What ours is made of, and what else it could not be faster than."""
    lengths, count = corpus.tokens.lengths, len(corpus.tokens)
    ids = _packing.permutation(count, 1)
    path = Path(corpus.prefix).parent / "ids.npy"
    rows = {
        "shuffle of the documents": lambda: _packing.permutation(count, 1),
        "one random look at every length (numpy)": lambda: np.take(lengths, ids),
        "write of the ids": lambda: np.save(path, ids),
        "copy of the ids in memory": lambda: ids.copy(),
    }
    for length in sequence_lengths:
        rows[f"sample index at {length:,}"] = lambda n=length: _packing.build_sample_index(lengths, ids, 3, n, False)
        rows[f"best-fit at {length:,}"] = lambda n=length: _packing.best_fit(lengths, ids, n + 1, n + 1)
    for name, function in rows.items():
        print(f"  {name:<42} {best(function, repeats if 'best-fit' not in name else 1) * 1e3:7.0f} ms")


if __name__ == "__main__":
    main()
