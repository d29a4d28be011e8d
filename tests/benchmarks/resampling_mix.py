"""What a token budget does to the lengths that are trained on, and what resampling costs.

    python tests/benchmarks/resampling_mix.py
    python tests/benchmarks/resampling_mix.py --documents 10000000 --cost

Lengths are drawn from three log-normal distributions (web pages, code, books), each a source. Without --cost: the share
of tokens in documents over 8,192, by budget. With it: seconds, and the most memory beside lengths and sources.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np

from megatron_ultralong.data.resampling import selection, summary
from megatron_ultralong.data.resampling.policy import LengthPolicy

SOURCES = {"web": (0.8, 700, 1.1), "code": (0.17, 1500, 1.4), "books": (0.03, 20_000, 1.2)}
"""Share of the documents, median of their tokens, and the logarithm's deviation."""
BUDGETS = (0.01, 0.1, 0.5, 1, 4)


def corpus(documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and sources, int32 as a corpus has them."""
    random = np.random.default_rng(0)
    shares, medians, deviations = np.array(list(SOURCES.values())).T
    sources = random.choice(len(SOURCES), documents, p=shares).astype(np.int32)
    lengths = np.exp(np.log(medians)[sources] + random.standard_normal(documents) * deviations[sources])
    return np.clip(lengths, 1, 2_000_000).astype(np.int32), sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--cost", action="store_true", help="measure the time and the memory")
    arguments = parser.parse_args()
    lengths, sources = corpus(arguments.documents)
    (cost if arguments.cost else table)(lengths, sources)


def table(lengths: np.ndarray, sources: np.ndarray) -> None:
    total = int(lengths.sum(dtype=np.int64))
    print(f"{len(lengths):,} documents, {total:,} tokens; over 8,192: {over(lengths, 1) / total:.1%}")
    print("| budget, of the corpus's tokens | tokens over 8,192 | of each source | documents listed |")
    print("|---|---|---|---|")
    for budget in BUDGETS:
        chosen = selection.select(lengths, sources, tuple(SOURCES), LengthPolicy(), round(budget * total), 0)
        counts = chosen.counts(0, len(lengths))
        own = [over(lengths[sources == s], counts[sources == s]) / chosen.budgets[s] for s in range(len(SOURCES))]
        each = ", ".join(f"{name} {share:.1%}" for name, share in zip(SOURCES, own, strict=True))
        share = over(lengths, counts) / int(counts @ lengths.astype(np.int64))
        print(f"| {budget:g} ({round(budget * total):,}) | {share:.1%} | {each} | {chosen.listed:,} |")


def over(lengths: np.ndarray, counts: np.ndarray | int) -> int:
    """Tokens listed in documents over 8,192."""
    return int((lengths.astype(np.int64) * counts)[lengths > 8192].sum())


def cost(lengths: np.ndarray, sources: np.ndarray) -> None:
    arguments = (lengths, sources, tuple(SOURCES), LengthPolicy(), None, 0)
    started = time.perf_counter()
    chosen = selection.select(*arguments)
    summary.summarize(chosen, tuple(SOURCES))
    listed = sum(map(len, chosen.ids()))
    seconds = time.perf_counter() - started
    tracemalloc.start()
    chosen = selection.select(*arguments)
    summary.summarize(chosen, tuple(SOURCES))
    assert listed == sum(map(len, chosen.ids()))
    peak = tracemalloc.get_traced_memory()[1]
    print(f"{len(lengths):,} documents in {seconds:.2f} s; at most {peak / len(lengths):.1f} bytes a document")


if __name__ == "__main__":
    main()
