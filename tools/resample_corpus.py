"""Choose documents by length, source by source: short ones down, long ones up, the mix of sources kept."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.cli import run


def resample(
    *,
    tokens: Path,
    output: Path,
    documents: Path | None = None,
    short_below: tuple[int, ...] = (4096,),
    keep_short: tuple[float, ...] = (0.1,),
    long_above: int = 8192,
    max_repeats: int | None = None,
    longest: int | None = None,
    weights: tuple[str, ...] = (),
    total_tokens: int | None = None,
    seed: int = 1234,
) -> None:
    """Write a list of document ids, a report (manifest.json) and its picture (histogram.png).

    Args:
        tokens: PREFIX written by tools/preprocess_data.py.
        output: Folder to write; an existing list there is replaced, other files refused.
        documents: Folder written by tools/decontaminate.py, to choose from its documents alone.
        short_below: Documents of fewer tokens are thinned out; several lengths, ascending, make several bands.
        keep_short: Share of a source's short documents that is kept, one for each of --short-below.
        long_above: Documents of more tokens are repeated until their source has its share of the total again.
        max_repeats: Most times a document may be listed; None for no limit.
        longest: Leave out documents of more tokens, as if the corpus had none: for a source of short documents, with
            --keep-short 1. None for all.
        weights: Share of the total of each source as NAME=NUMBER, relative to the others'; by default each source
            keeps its share of the tokens.
        total_tokens: Tokens of the list, to which the mix of lengths is scaled; None for as many as the corpus has.
        seed: Of every choice.
    """
    from megatron_ultralong.data.corpus.corpus import open_corpus
    from megatron_ultralong.data.resampling.listing import parse_weights, read_documents, write_resampled
    from megatron_ultralong.data.resampling.policy import LengthPolicy

    policy = LengthPolicy(
        short_below=short_below,
        keep_short=keep_short,
        long_above=long_above,
        max_repeats=max_repeats,
        longest=longest,
        weights=parse_weights(weights),
    )
    corpus = open_corpus(tokens)
    listed = None if documents is None else read_documents(documents, corpus)
    write_resampled(corpus, output, policy, total_tokens, seed, listed)


if __name__ == "__main__":
    run(resample)
