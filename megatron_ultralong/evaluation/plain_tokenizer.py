"""Any tokenizer for evaluation: a model's folder, or a sentencepiece or tiktoken file that lies alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer, without_trimming
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.samples import Form


class PlainTokenizer(ChatTokenizer):
    """A tokenizer without special tokens and chat template: texts to ids and back, and no more."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = load_tokenizer(path)
        self.vocab_size = self.tokenizer.vocab_size
        self.start_ids = ()

    @functools.cached_property
    def _backend(self) -> Any:
        """What knows the characters that a token comes from.

        Raises:
            UserError: the format has none.
        """
        import tokenizers

        recipe = self.tokenizer.recipe
        if recipe.kind != "huggingface":
            raise UserError(
                f"{self.tokenizer.path}: this task asks which characters a token comes from, and a file alone does not "
                "say; give a model's folder with a tokenizer.json."
            )
        return without_trimming(tokenizers.Tokenizer.from_buffer(recipe.content()))


def tokenizer_of(path: Path, form: Form) -> ChatTokenizer:
    """The tokenizer at a path.

    Raises:
        UserError: there is none, or in chat form it has no chat template.
    """
    if load_tokenizer(path).is_hugging_face:
        return ChatTokenizer(path, chat=form == "chat")
    if form == "chat":
        raise UserError(f"{path}: a file alone has no chat template; give a model's folder, or leave out --form chat.")
    return PlainTokenizer(path)
