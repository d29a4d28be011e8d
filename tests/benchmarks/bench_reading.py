"""Reading text files in pieces for the tokenizer, by script and size, against reading and decoding them plainly.

    python tests/benchmarks/bench_reading.py [--megabytes 24 48 96]

Each text is made of a seeded list of words and written to a temporary folder. It is read as a worker reads it, its
pieces let go at once, where Llama 3's split allows cuts; "plain" reads and decodes the same file in the same blocks.
Linear means that a ratio does not grow with the size. The most that Python's objects held is from a second, traced
reading.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import tracemalloc
from pathlib import Path

from megatron_ultralong.data.tokenizer.cut_places import find_cuts
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.readers import Reading, read_range
from megatron_ultralong.data.tokenizing.shards import FileRange
from tests.benchmarks.bench_tokenize import SPLIT

LETTERS = {
    "English": "etaoinshrdlucmfwypvbgkjqxz",
    "Cyrillic": "".join(map(chr, range(0x430, 0x450))),
    "Chinese": "".join(map(chr, range(0x4E00, 0x5200))),
    "Thai": "\u0e01\u0e32\u0e23\u0e19\u0e31\u0e48\u0e40\u0e07\u0e21\u0e34",
    "one letter": "x",
}
"""Letters of the words; Chinese has a comma between them, the last two have nothing."""


def write_text(path: Path, script: str, size: int) -> None:
    """So many bytes of words, or a character fewer."""
    draw = random.Random(0)
    words = ["".join(draw.choices(LETTERS[script], k=draw.randrange(1, 12))) for _ in range(20_000)]
    between = {"English": " ", "Cyrillic": " ", "Chinese": "\uff0c"}.get(script, "")
    some = between.join(draw.choices(words, k=200_000)).encode()
    with path.open("wb") as stream:
        for _ in range(size // len(some)):
            stream.write(some)
        stream.write(some[: size % len(some)].decode(errors="ignore").encode())


def read_plainly(path: Path) -> None:
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            block.decode(errors="ignore")


def read_in_pieces(path: Path, reading: Reading) -> int:
    """How many pieces there were."""
    size = path.stat().st_size
    piece = FileRange(path=str(path), format="text", source="web", begin=0, end=None, bytes=size, stamp=(size, 0))

    def complain(row: int, reason: str) -> None:
        raise AssertionError(reason)

    return sum(len(batch.texts) for batch in read_range(piece, reading, complain, lambda size: None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[24, 48, 96])
    arguments = parser.parse_args()
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    steps = [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    cuts = find_cuts({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})
    reading = Reading(Fields(), "text", cuts=cuts)
    with tempfile.TemporaryDirectory() as folder:
        for script in LETTERS:
            for size in arguments.megabytes:
                path = Path(folder) / "text.txt"
                write_text(path, script, size * 1_000_000)
                start = time.perf_counter()
                read_plainly(path)
                plain = time.perf_counter() - start
                start = time.perf_counter()
                pieces = read_in_pieces(path, reading)
                ours = time.perf_counter() - start
                tracemalloc.start()
                read_in_pieces(path, reading)
                held = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                print(
                    f"{script:10} {size:4} MB: {ours:7.3f} s in {pieces:3} pieces, plain {plain:6.3f} s, "
                    f"ratio {ours / plain:5.1f}; held at most {held / 1e6:4.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
