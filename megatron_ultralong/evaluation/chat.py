"""What the tasks need of a tokenizer, and the folder in Hugging Face format that gives it.

The tasks are written against two small protocols, so that they run on anything that can encode text and
render a chat. `encode` never adds tokens of its own, and turns the text of special tokens into their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.errors import UserError

Message = dict[str, str]
"""One turn of a chat: `role` and `content`."""


class Encoder(Protocol):
    """Turns text into token ids, adding none of its own."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ...


class Renderer(Encoder, Protocol):
    """An encoder that also knows the model's chat template. Hashable: costs of turns are remembered by it."""

    def __hash__(self) -> int: ...

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The chat as text; with `generation_prompt` it ends where the assistant is to go on."""
        ...


class ChatTokenizer:
    """The tokenizer and chat template of a folder in Hugging Face format; nothing is downloaded or executed.

    Args:
        folder: holds tokenizer.json and tokenizer_config.json (or chat_template.jinja).

    Raises:
        UserError: the folder holds no tokenizer, or the tokenizer no chat template.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.vocab_size = self._tokenizer.vocab_size
        if not self._tokenizer.hf.chat_template:
            raise UserError(f"{folder}: its tokenizer has no chat template; use the instruct model's tokenizer files.")

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without a leading or closing token."""
        return self._tokenizer.encode(text)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The chat as the model's template writes it."""
        text: str = self._tokenizer.hf.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt
        )
        return text
