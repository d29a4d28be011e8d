"""A tokenizer from a local path: a Hugging Face folder, a sentencepiece or tiktoken file, or raw bytes.

Ids are those of the format's own library without special tokens added: of transformers' AutoTokenizer for a folder
(text that spells a special token, "<|im_end|>", becomes that token, unless its split_special_tokens is set), of
sentencepiece for a model that lies alone, and of tiktoken for its file (see `tiktoken_file` for the split). `gigatoken`
makes the same ids 20 to 100 times faster; `check_fast` says whether it does for a tokenizer.

Cost: importing transformers takes two seconds, one without torch (`torch_hidden`), and happens when the first ids are
asked for.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.tokenizer.encoders import (
    EncodedBatch,
    Encoder,
    GigatokenEncoder,
    Recipe,
    reference_encoder,
)
from megatron_ultralong.data.tokenizer.identity import (
    BYTES,
    hugging_face_folder,
    pipeline_fingerprint,
    tokenizer_file,
    tokenizer_fingerprint,
)
from megatron_ultralong.data.tokenizer.probes import probes
from megatron_ultralong.data.tokenizer.tiktoken_file import convert_tiktoken, is_tiktoken
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)


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


class Tokenizer:
    """What the project needs of a tokenizer; made by `load_tokenizer`.

    Args:
        path: see `tokenizer_file`, or `BYTES`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.fingerprint = tokenizer_fingerprint(path)
        self._file = None if str(path) == BYTES else tokenizer_file(path)
        self._folder = hugging_face_folder(path)

    @property
    def is_hugging_face(self) -> bool:
        """Whether it is a folder in Hugging Face format, which may have special tokens and a chat template."""
        return self._folder is not None

    @functools.cached_property
    def hf(self) -> Any:
        """transformers' tokenizer, which neither cuts texts nor pads them, whatever its files say.

        Raises:
            UserError: it is of another kind, cannot be loaded, or needs code of its own.
        """
        if self._folder is None:
            raise UserError(
                f"{self.path}: has no chat template and no special tokens, being no folder with a tokenizer.json; "
                "name such a folder."
            )
        from transformers import AutoTokenizer

        try:
            loaded: Any = AutoTokenizer.from_pretrained(
                str(self._folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # broken JSON, missing parts, unknown models: tokenizers raises plain Exceptions
            raise self._unloadable(error) from None
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{self.path}: transformers loads it as {type(loaded).__name__}, which has no tokenizers backend; give "
                "the folder a tokenizer.json (and, where mistral-common is installed, take tekken.json out of it)."
            )
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            raise UserError(
                f"{self.path}: its BPE has a dropout of {backend.model.dropout}, so that ids are drawn at random; set "
                "model.dropout in tokenizer.json to null."
            )
        return loaded

    @functools.cached_property
    def recipe(self) -> Recipe:
        """What the reference encoder is built from: what transformers makes of a folder, not what its file says."""
        if self._file is None:
            return Recipe("bytes", b"")
        if self.is_hugging_face:
            backend = self.hf.backend_tokenizer
            return Recipe("huggingface", backend.to_str().encode(), bool(backend.encode_special_tokens))
        if is_tiktoken(self._file):
            try:
                return Recipe("huggingface", convert_tiktoken(self._file))
            except UserError:
                raise
            except Exception as error:  # a broken line or rank raises several types
                raise self._unloadable(error) from None
        return Recipe("sentencepiece", self._file)

    @property
    def likely_recipe(self) -> Recipe:
        """Very probably the same as `recipe`, without loading transformers: `is_effective` knows."""
        if self.is_hugging_face and self._file is not None and self._file.name == "tokenizer.json":
            return Recipe("huggingface", self._file)
        return self.recipe

    def is_effective(self, recipe: Recipe) -> bool:
        """Whether `recipe` gives the pipeline of the reference: transformers may build another than the file's."""
        if recipe == self.recipe:
            return True
        if recipe.kind != "huggingface" or self.recipe.kind != "huggingface":
            return False
        import tokenizers

        content = recipe.content()
        try:
            if pipeline_fingerprint(content, recipe.split_special) == self.backend_fingerprint:
                return True
            rewritten = tokenizers.Tokenizer.from_buffer(content).to_str().encode()  # in this version's spelling
        except Exception:  # a file that only another version can read; tokenizers raises plain Exceptions
            return False
        return pipeline_fingerprint(rewritten, recipe.split_special) == self.backend_fingerprint

    @functools.cached_property
    def backend_fingerprint(self) -> str:
        """SHA-256 (hex) of the pipeline that gives the ids, as this version of transformers builds it."""
        if self.recipe.kind != "huggingface":
            return self.fingerprint
        return pipeline_fingerprint(self.recipe.content(), self.recipe.split_special)

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

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return self.reference.vocab_size

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
        """Whether gigatoken, built from `recipe`, gives the reference's ids on `sample` and on `probes`.

        Texts are also compared whole against cut in pieces, where that is what will be done. If the answer is no,
        the log says why.
        """
        texts = [*sample, *probes(self.recipe)]
        try:
            fast = GigatokenEncoder(recipe)
            got = fast.encode_batch(texts)
        except Exception as error:  # gigatoken refuses with several types, and any refusal means the same
            logger.info("gigatoken refuses this tokenizer (%s); the slower reference is used.", error)
            return False
        expected = self.reference.encode_batch(texts, threads=os.cpu_count() or 1)
        same = fast.vocab_size == self.vocab_size
        same = same and np.array_equal(got[0], expected[0]) and np.array_equal(got[1], expected[1])
        if same and fast.cuts:
            cut = [piece for text in texts for piece in fast.cuts.pieces(text, size=200)]
            same = np.array_equal(fast.encode_batch(cut)[0], expected[0])
        if same:
            logger.info("gigatoken gives the same ids as the reference on a sample and is used.")
            return True
        bounds = [np.cumsum(lengths)[:-1] for _, lengths in (got, expected)]
        rows = (np.split(ids, bound) for (ids, _), bound in zip((got, expected), bounds, strict=True))
        parted = (text for text, ours, theirs in zip(texts, *rows, strict=True) if not np.array_equal(ours, theirs))
        logger.warning(
            "gigatoken gives other ids than the reference, on %.80r for one; the slower reference is used.",
            next(parted, "the vocabulary, or a cut text"),
        )
        return False


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer at a local path; no remote code, no network.

    Raises:
        UserError: there is none, or its files cannot be loaded.
    """
    tokenizer = Tokenizer(path)
    _ = tokenizer.reference
    return tokenizer
