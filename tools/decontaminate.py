"""Find the samples of evaluation files in a corpus, by n-grams of words, and list the documents that do not have them.

The list is a folder that tools/resample_corpus.py and tools/pack_corpus.py take with --documents; no token is copied.
Its manifest.json counts by evaluation file, its overlaps.jsonl names every document and sample that share an n-gram.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_ultralong.cli import run
from megatron_ultralong.errors import UserError


def decontaminate(
    *,
    tokens: Path,
    against: tuple[str, ...],
    tokenizer_model: Path,
    output: Path,
    fields: tuple[str, ...] = (),
    ngram: int = 13,
    min_coverage: float = 0.5,
    ignore_in_samples: int = 10,
    workers: int = len(os.sched_getaffinity(0)),
) -> None:
    """Write a list of document ids, a report (manifest.json) and all overlaps (overlaps.jsonl).

    Args:
        tokens: PREFIX written by tools/preprocess_data.py, of texts or chats.
        against: Evaluation files, folders, globs or URLs: samples of tools/evaluate.py make, any other JSON Lines, JSON
            or Parquet of one sample a row, or texts.
        tokenizer_model: Folder of the tokenizer that made the tokens.
        output: Folder to write; an existing list there is replaced, other files refused.
        fields: Fields of a sample that are its text, such as question answer; by default prompt and first reference of
            samples of tools/evaluate.py, and every string of other rows.
        ngram: Words of an n-gram, small letters without punctuation.
        min_coverage: Leave out documents that have this share of a sample's n-grams or more. A number near 0 leaves out
            all that share one n-gram.
        ignore_in_samples: N-grams that are in more samples than this (instructions, templates) are not looked for.
        workers: Processes; the output does not depend on it.
    """
    from megatron_ultralong.data.corpus.corpus import open_corpus
    from megatron_ultralong.data.decontamination.decontaminate import DecontaminationOptions, write_clean_list
    from megatron_ultralong.data.tokenizer.identity import check_tokenizer
    from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer, torch_hidden

    if workers < 1:
        raise UserError(f"--workers {workers}: is no number of processes; give 1 or more.")
    corpus = open_corpus(tokens)
    check_tokenizer(tokenizer_model, corpus.tokenizer_fingerprint, corpus.prefix)
    options = DecontaminationOptions(
        fields=fields, ngram=ngram, min_coverage=min_coverage, ignore_in_samples=ignore_in_samples
    )
    with torch_hidden():
        write_clean_list(corpus, against, output, Tokenizer(tokenizer_model), options, workers)


if __name__ == "__main__":
    run(decontaminate)
