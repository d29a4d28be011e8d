"""Planning 100,000 small files: what an array task pays before it tokenizes its first one.

    python tests/benchmarks/bench_planning.py [--files 100000] [--parquet 2000]

Makes the files in a temporary folder (of so many lines of JSON, 100 to a subfolder of 1,000) and times what
`tokenize_corpus` does before its work: finding the files, looking at the first, cutting shards and naming them. The
second array task finds the first one's PREFIX.parts. Parquet files are timed apart, since their footers must be read.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus


def write_texts(folder: Path, count: int) -> None:
    """Files of one line of JSON Lines, 1,000 in a folder."""
    for i in range(count):
        parent = folder / f"part{i // 1000:04}"
        if i % 1000 == 0:
            parent.mkdir(parents=True)
        (parent / f"{i:07}.jsonl").write_text(f'{{"text": "document {i}"}}\n')


def write_parquet(folder: Path, count: int) -> None:
    """Files of one row group of one row."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    for i in range(count):
        pyarrow.parquet.write_table(pyarrow.table({"text": [f"document {i}"]}), folder / f"{i:07}.parquet")


def seconds_of_a_task(folder: Path, prefix: Path, shard: tuple[int, int]) -> float:
    """Seconds of an array task that has no shard to do, so that all it does is to plan."""
    start = time.perf_counter()
    tokenize_corpus([folder], prefix, load_tokenizer("bytes"), Fields(), TokenizeOptions(shard=shard))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--parquet", type=int, default=2_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for name, count, write in (
            ("jsonl", arguments.files, write_texts),
            ("parquet", arguments.parquet, write_parquet),
        ):
            if count:
                folder = Path(root, name)
                write(folder, count)
                last = 1_000_000  # of so many shares, these have nothing to tokenize
                first, second = (
                    seconds_of_a_task(folder, Path(root, f"{name}-corpus"), (last - i, last + 1)) for i in range(2)
                )
                print(f"{count:,} files of {name}: {first:.2f} s to plan, {second:.2f} s for a second array task")


if __name__ == "__main__":
    main()
