"""What the tasks need of a tokenizer, and the folder in Hugging Face format that gives it.

The tasks are written against two small protocols, so that they run on anything that can encode text and
render a chat. `encode` never adds tokens of its own, and turns the text of special tokens into their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

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
        from transformers import AutoTokenizer

        if not (Path(folder) / "tokenizer.json").is_file():
            raise UserError(f"{folder}: there is no tokenizer.json; copy the model's tokenizer files into the folder.")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{folder}: its tokenizer cannot be loaded ({first}); copy the model's files anew."
            ) from None
        if not self._tokenizer.chat_template:
            raise UserError(f"{folder}: its tokenizer has no chat_template; use the instruct model's tokenizer files.")

    def __len__(self) -> int:
        """Ids in all, added tokens included."""
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without a leading or closing token."""
        return list(self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The chat as the model's template writes it."""
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt
        )
        assert isinstance(text, str)
        return text
