"""Tokenize text into megatron-core's .bin/.idx, one entry a document, with a manifest.

A document is one JSON object with its text in --json-keys, or a chat in --messages-key (a list of {"role", "content"},
and other layouts), rendered with the tokenizer's own chat template and a mask of the responses; or a row of Parquet
with such a column; or one whole text file. --help says which files are read; docs/data.md has the rest.

A run that was stopped or killed goes on from its finished shards when the same command is given again. On several
machines give each --shard i/n (an array job of SLURM: --shard $SLURM_ARRAY_TASK_ID/8), and at the end the same command
without it, which joins the shards.

--adopt takes token files that others wrote (.bin and .idx of Megatron-LM, NeMo or datatrove, datatrove's .ds) in place
of texts, and leaves them where they are.

Of object stores and web servers nothing is downloaded whole; credentials come from the environment (docs/data.md,
"Object stores").
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, Literal

from megatron_ultralong.cli import run
from megatron_ultralong.data.adopting.adopt import AdoptOptions, adopt_files
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer, torch_hidden
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, parse_shard, tokenize_corpus
from megatron_ultralong.errors import UserError

_NOTHING = AdoptOptions()


def preprocess(
    *,
    input: tuple[str, ...] = (),
    output_prefix: Path,
    tokenizer_model: Path,
    json_keys: tuple[str, ...] = ("text",),
    source_key: str = "source",
    messages_key: str = "messages",
    source: str = "",
    input_format: Literal["auto", "jsonl", "parquet", "text"] = "auto",
    malformed: Literal["stop", "skip"] = "stop",
    append_eod: bool = False,
    mask: Literal["all", "last"] = "all",
    chat_date: str = "",
    encoder: Literal["auto", "reference"] = "auto",
    workers: int = len(os.sched_getaffinity(0)),
    shard: str = "",
    overwrite: bool = False,
    adopted: AdoptOptions = _NOTHING,
) -> None:
    """Tokenize text into PREFIX.bin, PREFIX.idx, PREFIX.sources.npy and PREFIX.json.

    Args:
        input: Files, folders, globs, URLs of them (s3://, gs://, hf://, https://), or - (standard input), in the order
            of the documents: JSON Lines (.jsonl, .ndjson, .json), .json of one array or object, text (.txt, .text,
            .md, .rst), each also with .gz, .bz2, .xz or .zst, and .parquet. The log counts a folder's other files.
        output_prefix: PREFIX of the files to write, on this machine.
        tokenizer_model: Folder in Hugging Face format, a sentencepiece or tiktoken file, or 'bytes'.
        json_keys: Field or column that holds the text: one. Run again for another, with its own --output-prefix.
        source_key: Field or column that names a document's source; else it is its file or folder.
        messages_key: Field or column that holds a chat.
        source: The source of every document, instead.
        input_format: What is in the inputs; auto goes by their endings.
        malformed: Stop at a malformed document, or skip it and list it in PREFIX.skipped.tsv.
        append_eod: End each document with the tokenizer's eos_token; packing sets its own separators.
        mask: Of a chat learn all its responses, or the last alone.
        chat_date: YYYY-MM-DD for chat templates that print today's date; 2024-07-26 unless given, in every run.
        encoder: auto: gigatoken where it gives the same ids, one text in 1,000 compared; reference: the slower library.
        workers: Processes that tokenize; the output does not depend on it.
        shard: i/n: tokenize only the i-th of n shares, from 0, and do not join them.
        overwrite: Replace another corpus of this PREFIX.
    """
    if adopted.adopt:
        return _adopt(dict(locals()))
    fields = _fields(input, adopted, json_keys, source_key, messages_key)
    options = TokenizeOptions(
        workers, input_format, source, malformed, append_eod, encoder, mask, chat_date, parse_shard(shard), overwrite
    )
    with torch_hidden():
        tokenize_corpus(input, output_prefix, Tokenizer(tokenizer_model), fields, options)


def _fields(
    inputs: tuple[str, ...], adopted: AdoptOptions, json_keys: tuple[str, ...], source_key: str, messages_key: str
) -> Fields:
    """Names of the fields of documents.

    Raises:
        UserError: there is no input, or several fields; or options of --adopt alone are given.
    """
    if adopted != _NOTHING:
        raise UserError("--end-ids and --end-id: are for --adopt; give that, or leave them out.")
    if not inputs:
        raise UserError("--input: names no file; give files of text, or tokens that others wrote with --adopt.")
    if len(json_keys) != 1:
        keys = " ".join(json_keys)
        raise UserError(f"--json-keys {keys}: is not one field; run once for each, with its own --output-prefix.")
    return Fields(text=json_keys[0], source=source_key, messages=messages_key)


def _adopt(given: dict[str, Any]) -> None:
    """Adopt the files, with the options of `preprocess` by name.

    Raises:
        UserError: an option that has no meaning for tokens is given.
    """
    meant = {"output_prefix", "tokenizer_model", "adopted", "source", "overwrite"}
    for name, parameter in inspect.signature(preprocess).parameters.items():
        if name not in meant and given[name] != parameter.default:
            raise UserError(
                f"--{name.replace('_', '-')}: has no meaning for --adopt, which takes tokens; leave it out."
            )
    with torch_hidden():
        tokenizer = Tokenizer(given["tokenizer_model"])
        adopt_files(given["output_prefix"], tokenizer, given["adopted"], given["source"], given["overwrite"])


if __name__ == "__main__":
    run(preprocess)
