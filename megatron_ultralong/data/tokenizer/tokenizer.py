"""A tokenizer from a local path: a Hugging Face folder, a sentencepiece or tiktoken file, or raw bytes.

Ids are those of the format's own library without special tokens added: of transformers' AutoTokenizer for a folder
(text that spells a special token, "<|im_end|>", becomes that token), of sentencepiece for its model, and for a tiktoken
file those that transformers' converter gives with Llama 3's split. A tiktoken file holds no special tokens, so none is
recognised. `gigatoken` makes the same ids 20 to 100 times faster; `check_fast` says whether it does for a tokenizer.

Cost: importing transformers takes two seconds, one without torch (`torch_hidden`), and happens when the first ids are
asked for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.tokenizer.cutting import pieces
from megatron_ultralong.data.tokenizer.encoders import (
    EncodedBatch,
    Encoder,
    GigatokenEncoder,
    Recipe,
    reference_encoder,
)
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

BYTES = "bytes"
"""In place of a path: each byte is an id, for tests."""

_HARD_TEXTS = ["", " ", "\n\n  x\t\r\n", "I'm 1234567890, she'll", "naïve 東京 \U0001f600é\u200b", "<s></s>"]


@contextlib.contextmanager
def torch_hidden() -> Iterator[None]:
    """Let transformers be imported without torch, unless that is loaded already.

    Tokenizers have no use for torch, and importing it takes longer than tokenizing 200 MB. Only for a process that
    does nothing else: transformers remembers that it found no torch.
    """
    if "torch" in sys.modules:
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # Python's way to say that there is none
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # "PyTorch was not found"
    try:
        yield
    finally:
        del modules["torch"]


def tokenizer_file(path: Path) -> Path:
    """The file that defines a tokenizer: `path`, or in a folder tokenizer.json, else tokenizer.model, else *.tiktoken.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for found in (path / "tokenizer.json", path / "tokenizer.model", *sorted(path.glob("*.tiktoken"))):
        if found.is_file():
            return found
    raise UserError(
        f"{path / 'tokenizer.json'}: the tokenizer is missing; name a folder in Hugging Face format that has one, "
        "a sentencepiece or tiktoken file, or 'bytes'."
    )


def tokenizer_fingerprint(path: Path) -> str:
    """SHA-256 (hex) of the file that defines the tokenizer.

    Raises:
        UserError: there is none.
    """
    if str(path) == BYTES:
        return hashlib.sha256(BYTES.encode()).hexdigest()
    return hashlib.sha256(tokenizer_file(path).read_bytes()).hexdigest()


class Tokenizer:
    """What the project needs of a tokenizer; made by `load_tokenizer`.

    Args:
        path: see `tokenizer_file`, or `BYTES`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.fingerprint = tokenizer_fingerprint(path)
        self._file = None if str(path) == BYTES else tokenizer_file(path)

    @property
    def is_hugging_face(self) -> bool:
        """Whether it is a folder in Hugging Face format, which may have special tokens and a chat template."""
        return self._file is not None and self._file.name == "tokenizer.json"

    @functools.cached_property
    def hf(self) -> Any:
        """transformers' tokenizer.

        Raises:
            UserError: it is of another kind, or cannot be loaded.
        """
        if not self.is_hugging_face:
            raise UserError(
                f"{self.path}: has no chat template and no special tokens, being no folder with a tokenizer.json; "
                "name such a folder."
            )
        from transformers import AutoTokenizer

        assert self._file is not None
        try:
            return AutoTokenizer.from_pretrained(str(self._file.parent), local_files_only=True)
        except Exception as error:  # broken JSON, missing parts, unknown models: tokenizers raises plain Exceptions
            raise self._unloadable(error) from None

    @functools.cached_property
    def recipe(self) -> Recipe:
        """What the reference encoder is built from."""
        if self._file is None:
            return Recipe("bytes", b"")
        if self.is_hugging_face:
            return Recipe("huggingface", self.hf.backend_tokenizer.to_str().encode())
        if _is_tiktoken(self._file):
            return Recipe("huggingface", self._convert_tiktoken())
        return Recipe("sentencepiece", self._file)

    @property
    def likely_recipe(self) -> Recipe:
        """Very probably the same as `recipe`, without loading transformers: `check_fast` knows."""
        if self.is_hugging_face and self._file is not None:
            return Recipe("huggingface", self._file)
        return self.recipe

    @functools.cached_property
    def reference(self) -> Encoder:
        """The encoder whose ids are the definition."""
        try:
            return reference_encoder(self.recipe)
        except UserError:
            raise
        except Exception as error:  # sentencepiece and tokenizers raise several types for a broken file
            raise self._unloadable(error) from None

    def _unloadable(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())
        return UserError(f"{self.path}: the tokenizer cannot be loaded ({reason}); mend its files.")

    def _convert_tiktoken(self) -> bytes:
        from transformers.convert_slow_tokenizer import TikTokenConverter

        try:
            import tiktoken  # noqa: F401  # the converter reads the file with it
        except ImportError:
            raise UserError(f"{self._file}: needs tiktoken to be read; pip install tiktoken.") from None
        try:
            converted: str = TikTokenConverter(vocab_file=str(self._file)).converted().to_str()
        except Exception as error:  # a broken line or rank raises several types
            raise self._unloadable(error) from None
        return converted.encode()

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return self.reference.vocab_size

    @property
    def chat_template(self) -> str:
        """The chat template.

        Raises:
            UserError: there is none.
        """
        if not self.hf.chat_template:
            raise UserError(f"{self.path}: the tokenizer has no chat template; add chat_template to its files.")
        template: str = self.hf.get_chat_template()
        return template

    @property
    def end_of_document(self) -> int:
        """Id of the end-of-sequence token.

        Raises:
            UserError: there is none.
        """
        if self.hf.eos_token_id is None:
            raise UserError(f"{self.path}: the tokenizer has no eos_token; add it to tokenizer_config.json.")
        return int(self.hf.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without special tokens added."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of several texts, by the reference."""
        return self.reference.encode_batch(texts, threads=os.cpu_count() or 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self.reference.decode(ids)

    def check_fast(self, recipe: Recipe, sample: Sequence[str]) -> bool:
        """Whether gigatoken, built from `recipe`, gives the same ids on `sample` and on a few hard texts.

        Texts are also compared whole against cut in pieces, where that is what will be done. If the answer is no,
        the log says why.
        """
        specials = self.hf.all_special_tokens if self.is_hugging_face else []
        texts = [*sample, *_HARD_TEXTS, *(f"a{token}b {token}" for token in specials)]
        try:
            fast = GigatokenEncoder(recipe)
            got = fast.encode_batch(texts)
        except Exception as error:  # gigatoken refuses with several types, and any refusal means the same
            logger.info("gigatoken refuses this tokenizer (%s); the slower reference is used.", error)
            return False
        expected = self.reference.encode_batch(texts, threads=os.cpu_count() or 1)
        same = fast.vocab_size == self.vocab_size
        same = same and np.array_equal(got[0], expected[0]) and np.array_equal(got[1], expected[1])
        if same and fast.cuttable:
            cut = [piece for text in texts for piece in pieces(text, size=200)]
            same = np.array_equal(fast.encode_batch(cut)[0], expected[0])
        if same:
            logger.info("gigatoken gives the same ids as the reference on a sample and is used.")
        else:
            logger.warning("gigatoken gives other ids than the reference on a sample; the slower reference is used.")
        return same


def _is_tiktoken(path: Path) -> bool:
    """Whether a file's first line is a token in base64 and its rank; sentencepiece models are binary."""
    with path.open("rb") as stream:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n?", stream.readline(1000)) is not None


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer at a local path; no remote code, no network.

    Raises:
        UserError: there is none, or its files cannot be loaded.
    """
    tokenizer = Tokenizer(path)
    _ = tokenizer.reference
    return tokenizer


def check_tokenizer(path: Path, expected: str, prefix: Path) -> None:
    """Refuse a tokenizer that is not the one that made the tokens of `prefix`.

    Raises:
        UserError: its fingerprint is not `expected`.
    """
    if tokenizer_fingerprint(path) != expected:
        name = path if str(path) == BYTES else tokenizer_file(path)
        raise UserError(
            f"{name}: is not the tokenizer that made {prefix}.bin; "
            "name that one, or tokenize again with tools/preprocess_data.py."
        )
