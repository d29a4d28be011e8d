"""Tokenize JSON Lines (.gz too) into megatron-core's .bin/.idx, one entry a document, with a manifest.

A document is one JSON object a line with its text in --json-key, or a chat in --messages-key (a list of
{"role", "content"}), rendered with the tokenizer's own chat template and a mask of the responses.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_ultralong.cli import run


def preprocess(
    *,
    input: tuple[Path, ...],
    output_prefix: Path,
    tokenizer_model: Path,
    json_key: str = "text",
    source_key: str = "source",
    messages_key: str = "messages",
    workers: int = os.cpu_count() or 1,
) -> None:
    """Tokenize JSON Lines into PREFIX.bin, PREFIX.idx, PREFIX.sources.npy and PREFIX.json.

    Args:
        input: Files of JSON Lines, plain or .gz; their order is the order of the documents.
        output_prefix: PREFIX of the files to write.
        tokenizer_model: Folder in Hugging Face format with a tokenizer.json.
        json_key: Field that holds the text.
        source_key: Field that names a document's source; without it, the file's name is the source.
        messages_key: Field that holds a chat.
        workers: Threads that tokenize; the output does not depend on it.
    """
    os.environ["RAYON_NUM_THREADS"] = str(workers)  # read by both tokenizers when their first batch comes
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from megatron_ultralong.data.documents import Fields
    from megatron_ultralong.data.tokenize import tokenize_corpus
    from megatron_ultralong.data.tokenizer import load_tokenizer

    fields = Fields(text=json_key, source=source_key, messages=messages_key)
    tokenize_corpus(input, output_prefix, load_tokenizer(tokenizer_model), fields)


if __name__ == "__main__":
    run(preprocess)
