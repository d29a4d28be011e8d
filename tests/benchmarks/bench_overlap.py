"""How fast tokens of others are checked, and n-grams looked for on one core: by the clock and in processor time.

python tests/benchmarks/bench_overlap.py --megabytes 40 --tokens 300000000
"""

from __future__ import annotations

import argparse
import random
import site
import tempfile
import time
from pathlib import Path

import numpy as np

from megatron_ultralong.data.adopting.adopt import AdoptOptions, adopt_files
from megatron_ultralong.data.corpus.indexed_dataset import write_index
from megatron_ultralong.data.decontamination.ngram_index import build_index
from megatron_ultralong.data.decontamination.overlap import Matcher
from megatron_ultralong.data.decontamination.plain_words import words
from megatron_ultralong.data.tokenizer.encoders import GigatokenEncoder
from megatron_ultralong.data.tokenizer.token_bytes import token_bytes
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer, load_tokenizer

MODEL = Path(__file__).parents[2] / "examples" / "tiny_cpu" / "base"


def sources(size: int) -> bytes:
    """Python sources of what is installed, shuffled."""
    files = sorted(path for folder in site.getsitepackages() for path in Path(folder).rglob("*.py"))[:3000]
    random.Random(0).shuffle(files)
    return b"\n".join(path.read_bytes() for path in files)[:size]


def overlap(tokenizer: Tokenizer, text: bytes, samples: int) -> None:
    """A text against stretches of 100 words of itself."""
    spelled = words(text)
    starts = np.random.default_rng(0).integers(0, len(spelled) - 100, samples)
    known: dict[bytes, int] = {}
    numbers = [
        np.array([known.setdefault(word, len(known) + 1) for word in spelled[start : start + 100]], dtype=np.int32)
        for start in starts
    ]
    begin = time.process_time()
    index = build_index(numbers, 13, 10)
    print(f"index: {len(index.hashes):,} n-grams, {time.process_time() - begin:.1f} s")
    ids = GigatokenEncoder(tokenizer.likely_recipe).encode_batch([text])[0].astype(np.uint16)
    matcher = Matcher(index, list(known), token_bytes(tokenizer))
    clock, begin = time.perf_counter(), time.process_time()
    found = matcher.overlaps([(0, ids)])
    took = time.process_time() - begin
    print(f"overlap: {time.perf_counter() - clock:.1f} s, {took:.1f} s of processor time")
    print(f"         {len(text) / 1e6:.0f} MB, {len(ids):,} tokens, {len(found.samples):,} samples found")
    print(f"         {len(text) / 1e6 / took:.1f} MB/s, {len(ids) / 1e6 / took:.1f} million tokens/s")


def adoption(tokenizer: Tokenizer, tokens: int, folder: Path) -> None:
    """One file of random ids in documents of 1 to 3,000."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 3000, tokens // 1500).astype(np.int32)
    block = rng.integers(5, 1000, 1 << 20).astype(np.uint16)
    np.tile(block, int(lengths.sum()) // len(block) + 1)[: int(lengths.sum())].tofile(folder / "a.bin")
    write_index(folder / "a.idx", np.dtype("<u2"), len(lengths), lambda: [lengths])
    begin = time.perf_counter()
    adopt_files(folder / "c", tokenizer, AdoptOptions((folder / "a",)))
    print(f"adoption: {int(lengths.sum()):,} tokens, {time.perf_counter() - begin:.2f} s")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--tokens", type=int, default=300_000_000)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        adoption(tokenizer, arguments.tokens, Path(folder))
    overlap(tokenizer, sources(arguments.megabytes * 10**6), arguments.samples)


if __name__ == "__main__":
    main()
