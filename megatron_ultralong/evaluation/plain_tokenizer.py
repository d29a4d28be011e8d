"""Any tokenizer for evaluation: a model's folder, or a sentencepiece or tiktoken file that lies alone."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.samples import Form


class PlainTokenizer(ChatTokenizer):
    """A tokenizer without special tokens and chat template: texts to ids and back, and no more."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = load_tokenizer(path)
        self.vocab_size = self.tokenizer.vocab_size
        self.start_ids = ()


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
