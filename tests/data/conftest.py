"""A small tokenizer, trained here (byte-level BPE with Qwen2's split, a ChatML template), and corpora of given ids."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from megatron_ultralong.data.corpus.corpus import (
    VERSION,
    Corpus,
    combined_fingerprint,
    manifest_path,
    mask_prefix,
    open_corpus,
    sources_path,
    token_files,
)
from megatron_ultralong.data.corpus.indexed_dataset import IndexedWriter, bin_path, idx_path, token_dtype
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer, load_tokenizer

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(folder: Path, text: str) -> Path:
    """Write a tokenizer folder in Hugging Face format."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator([text], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    rust.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>"],
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small tokenizer."""
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"), Path(__file__).read_text() * 3)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    """The small tokenizer, loaded."""
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """A function that writes documents given as ids (for chats with masks) as a corpus and opens it."""

    def write(
        documents: list[list[int]],
        *,
        masks: list[list[int]] | None = None,
        sources: list[str] | None = None,
        vocab_size: int = 1000,
        name: str = "corpus",
    ) -> Corpus:
        prefix = tmp_path / name
        kind = "text" if masks is None else "chat"
        _write_indexed(prefix, documents, token_dtype(vocab_size))
        if masks is not None:
            _write_indexed(mask_prefix(prefix), masks, np.dtype("u1"))
        labels = sources or ["web"] * len(documents)
        names = list(dict.fromkeys(labels))
        np.save(sources_path(prefix), np.array([names.index(label) for label in labels], dtype=np.int32))
        manifest = {
            "version": VERSION,
            "kind": kind,
            "sources": names,
            "tokenizer_fingerprint": "t",
            "vocab_size": vocab_size,
            "tokens_fingerprint": combined_fingerprint(token_files(prefix, kind)),
        }
        manifest_path(prefix).write_text(json.dumps(manifest))
        return open_corpus(prefix)

    return write


def _write_indexed(prefix: Path, documents: list[list[int]], dtype: np.dtype) -> None:
    with bin_path(prefix).open("wb") as stream:
        writer = IndexedWriter(stream, dtype)
        for document in documents:
            writer.add(np.array(document), np.array([len(document)]))
    writer.write_index(idx_path(prefix))


def write_lines(path: Path, documents: list[dict[str, Any]]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two corpora are the same files."""
    return all(
        Path(f"{one}.{end}").read_bytes() == Path(f"{other}.{end}").read_bytes()
        for end in ("bin", "idx", "sources.npy")
    )


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Nine documents of two sources, and an empty one."""
    documents = [{"text": f"document {i}: " + "word " * (7 * i), "source": "ab"[i % 2]} for i in range(9)]
    documents.insert(3, {"text": "", "source": "empty"})
    return write_lines(tmp_path / "in.jsonl", documents)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, whom no permission stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
