"""A Hugging Face tokenizer from a local folder: text to ids, chats to ids with the mask of the responses.

Ids are those of transformers' AutoTokenizer without special tokens added. Text that spells a special token
("<|im_end|>") becomes that token, as with every Hugging Face tokenizer. `gigatoken` does the same work 20 to 100
times faster; it is used only after it gave the same ids on a sample of the input (`accelerate`).

Cost: importing transformers takes a few seconds; a batch needs memory for its text, its ids and, with the
Hugging Face tokenizer, about 100 bytes a token while it is encoded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

Batch = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
"""Ids of several texts one after the other, uint32 [n], and the number of ids of each, int64 [texts]."""

_HARD_TEXTS = ["", " ", "\n\n  x\t\r\n", "I'm 1234567890, she'll", "naïve 東京 \U0001f600é\u200b", "<s></s>"]


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of the folder's tokenizer.json.

    Raises:
        UserError: there is none.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: the tokenizer is missing; name a folder in Hugging Face format that has one.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Tokenizer:
    """What the project needs of a tokenizer; made by `load_tokenizer`."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.folder = Path(folder)
        self.fingerprint = tokenizer_fingerprint(folder)
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (ValueError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: the tokenizer cannot be loaded ({reason}); mend its files.") from None
        self._rust: Any = self.hf.backend_tokenizer
        self._rust.no_truncation()
        self._rust.no_padding()
        self._fast: Any = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return 1 + max(self._rust.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without special tokens added."""
        ids: list[int] = self._rust.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        text: str = self._rust.decode(list(ids), skip_special_tokens=False)
        return text

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Ids of several texts, encoded by as many threads as RAYON_NUM_THREADS or the cores allow."""
        return self._fast_batch(texts) if self._fast is not None else self._slow_batch(texts)

    def accelerate(self, sample: Sequence[str]) -> bool:
        """Use gigatoken from now on if it gives the same ids on `sample` and on a few hard texts.

        Returns:
            Whether it does; if not, the log says why, and the Hugging Face tokenizer stays in use.
        """
        import gigatoken

        texts = [*sample, *_HARD_TEXTS, *(f"a{token}b {token}" for token in self.hf.all_special_tokens)]
        try:
            self._fast = gigatoken.Tokenizer.from_json(self._rust.to_str())
            fast, slow = self._fast_batch(texts), self._slow_batch(texts)
        except Exception as error:  # gigatoken refuses with several types, and any refusal means the same
            self._fast = None
            logger.info("gigatoken refused this tokenizer (%s); the Hugging Face tokenizer is used.", error)
            return False
        if not (np.array_equal(fast[0], slow[0]) and np.array_equal(fast[1], slow[1])):
            self._fast = None
            logger.warning("gigatoken gave other ids on a sample; the Hugging Face tokenizer is used.")
            return False
        logger.info("gigatoken gives the same ids as the Hugging Face tokenizer on a sample and is used.")
        return True

    def _fast_batch(self, texts: Sequence[str]) -> Batch:
        import awkward  # type: ignore[import-untyped]  # what gigatoken returns

        rows = self._fast.encode_batch(list(texts))
        return (
            awkward.to_numpy(awkward.flatten(rows)).astype(np.uint32, copy=False),
            awkward.to_numpy(awkward.num(rows)).astype(np.int64, copy=False),
        )

    def _slow_batch(self, texts: Sequence[str]) -> Batch:
        rows = [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return np.fromiter((i for row in rows for i in row), dtype=np.uint32, count=int(lengths.sum())), lengths

    def render_chat(
        self, messages: Sequence[Mapping[str, str]]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Render a conversation with the tokenizer's chat template and mark what the assistant says.

        A response is what the template adds for an assistant message after its generation prompt, up to and with
        the last special token (the end of turn). The text is encoded once, as it is at inference; a token that
        straddles the response's first character is not marked. Rendering every prefix makes the cost quadratic
        in the number of messages.

        Args:
            messages: {"role": ..., "content": ...} in order.

        Returns:
            ids: uint32 [n]; mask: uint8 [n], 1 on the responses.

        Raises:
            UserError: no template, no assistant message, a message the template refuses, or a template that
                renders a conversation's beginning otherwise than the whole.
        """
        if all(message["role"] != "assistant" for message in messages):
            roles = ", ".join(sorted({message["role"] for message in messages})) or "none"
            raise UserError(f"messages: no message has the role 'assistant' (roles: {roles}); add a response.")
        whole = self._render(messages, prompt=False)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:i], prompt=True) if i else ""
            after = self._render(messages[: i + 1], prompt=False)
            if not after.startswith(before) or not whole.startswith(after):
                raise UserError(
                    f"{self.folder}: its chat template renders the first {i + 1} messages otherwise than as the "
                    "beginning of the conversation, so the responses cannot be found; use a template that only appends."
                )
            spans.append((len(before), len(after)))
        encoding = self._rust.encode(whole, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.uint32)
        return ids, self._response_mask(ids, np.array(encoding.offsets).reshape(-1, 2)[:, 0], spans)

    def _response_mask(
        self, ids: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64], spans: list[tuple[int, int]]
    ) -> npt.NDArray[np.uint8]:
        mask = np.zeros(len(ids), dtype=np.uint8)
        special = np.isin(ids, self.hf.all_special_ids)
        for begin, end in spans:
            first, last = np.searchsorted(starts, [begin, end])
            ends = np.flatnonzero(special[first:last])
            mask[first : first + ends[-1] + 1 if len(ends) else last] = 1
        return mask

    def _render(self, messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
        from jinja2.exceptions import TemplateError

        if not self.hf.chat_template:
            raise UserError(f"{self.folder}: the tokenizer has no chat template; add chat_template to its files.")
        try:
            text: str = self.hf.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
            )
        except TemplateError as error:
            raise UserError(f"{self.folder}: its chat template refuses the messages ({error}); mend them.") from None
        return text


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a local folder in Hugging Face format; no remote code, no network.

    Raises:
        UserError: the folder has no tokenizer.json or its files cannot be loaded.
    """
    return Tokenizer(folder)


def check_tokenizer(folder: Path, expected: str, prefix: Path) -> None:
    """Refuse a tokenizer that is not the one that made the tokens of `prefix`.

    Raises:
        UserError: its fingerprint is not `expected`.
    """
    if tokenizer_fingerprint(folder) != expected:
        raise UserError(
            f"{folder}/tokenizer.json: is not the tokenizer that made {prefix}.bin; "
            "name that one, or tokenize again with tools/preprocess_data.py."
        )
