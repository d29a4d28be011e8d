"""Pack tokenized documents into samples of one length: writes an index, never copies tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from megatron_ultralong.cli import run


def pack(
    *,
    tokens: Path,
    output: Path,
    sequence_length: int,
    tokenizer_model: Path,
    separator: str = "<s>",
    documents: Path | None = None,
    packing: Literal["concatenate", "best-fit"] = "concatenate",
    shuffle_seed: int | None = 1234,
    last_sample: Literal["drop", "keep"] = "drop",
    overlong: Literal["drop", "cut"] = "drop",
    held_out: float = 0.0,
    part: Literal["rest", "held-out"] = "rest",
) -> None:
    """Write a packed index.

    Args:
        tokens: PREFIX written by tools/preprocess_data.py.
        output: Folder to write; an existing index there is replaced, other files refused.
        sequence_length: Tokens a sample.
        tokenizer_model: Folder of the tokenizer that made the tokens.
        separator: Text between two documents, encoded by the tokenizer; "" for none. best-fit has none.
        documents: Folder written by tools/resample_corpus.py or tools/decontaminate.py; by default every document once.
        packing: Join documents and cut (pretraining), or keep documents whole and pad (SFT).
        shuffle_seed: Seed of the order of documents; None keeps the order.
        last_sample: For concatenate: leave out the tokens that do not fill a last sample, or keep them as a padded one.
        overlong: For best-fit: drop documents that are longer than a sample, or cut them.
        held_out: Share of the documents, chosen by a hash of their number, that is kept for validation; 0 for none.
        part: With --held-out: pack all the others, to train on, or these alone, each once.
    """
    from megatron_ultralong.data.corpus.corpus import open_corpus
    from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
    from megatron_ultralong.data.resampling.holding_out import hold_out
    from megatron_ultralong.data.resampling.listing import read_documents
    from megatron_ultralong.data.tokenizer.identity import check_tokenizer
    from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer

    corpus = open_corpus(tokens)
    check_tokenizer(tokenizer_model, corpus.tokenizer_fingerprint, corpus.prefix)
    options = PackOptions(
        sequence_length=sequence_length,
        packing="concatenate" if packing == "concatenate" else "best_fit",
        separator=load_tokenizer(tokenizer_model).encode(separator) if packing == "concatenate" and separator else (),
        shuffle_seed=shuffle_seed,
        last_sample=last_sample,
        overlong=overlong,
    )
    listed = None if documents is None else read_documents(documents, corpus)
    write_packed_index(corpus, output, options, hold_out(corpus, listed, held_out, part))


if __name__ == "__main__":
    run(pack)
