"""What every command that asks a model begins and ends with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Backend
from megatron_ultralong.evaluation.backends.model_options import ModelOptions
from megatron_ultralong.evaluation.backends.opening import open_backend
from megatron_ultralong.evaluation.plain_tokenizer import tokenizer_of
from megatron_ultralong.evaluation.samples import Form
from megatron_ultralong.files import writable


@contextlib.contextmanager
def answering_backend(options: ModelOptions, form: Form, output: Path) -> Iterator[tuple[Backend, ChatTokenizer]]:
    """The model's backend, which is closed at the end, and its tokenizer.

    Raises:
        UserError: nothing can be written to `output`, or the model cannot be had.
    """
    if not writable(output):
        raise UserError(f"--output is {output}, where nothing can be written; name another folder.")
    tokenizer = tokenizer_of(options.tokenizer_folder(), form)
    backend = open_backend(options, tokenizer)
    try:
        yield backend, tokenizer
    finally:
        backend.close()


def label_of(name: str, options: ModelOptions) -> str:
    """How reports call the model: `name`, or the last part of --model."""
    return name or Path(options.model).resolve().name
