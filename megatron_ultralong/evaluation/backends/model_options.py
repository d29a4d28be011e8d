"""The model and what answers for it, as the command line says it. No backend is imported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from megatron_ultralong.errors import UserError

Kind = Literal["hf", "megatron", "openai"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and what answers for it."""

    model: str
    """A folder in Hugging Face format; with --backend megatron also a Megatron checkpoint; with openai the name that
    the server knows."""
    backend: Kind = "hf"
    """hf: transformers on one device. megatron: under torchrun, over tensor- and context-parallel ranks. openai: a
    server (vLLM, SGLang, NIM, transformers serve)."""
    tokenizer: Path | None = None
    """Folder of the model's tokenizer; None: that of --model."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of weights and activations (hf, megatron)."""
    past_context: bool = False
    """Also ask what is longer than the model's context."""
    chunk: int = 8192
    """Tokens that are read at once, of a rank (hf, megatron)."""
    tensor: int = 1
    """Tensor-parallel ranks (megatron)."""
    context: int = 1
    """Context-parallel ranks (megatron)."""
    ulysses: int = 1
    """Of these, neighbours that exchange heads for sequence (megatron)."""
    url: str = "http://localhost:8000/v1"
    """Where the server answers (openai)."""
    endpoint: Literal["completions", "chat"] = "completions"
    """Prompts rendered here and sent as they are, or chats that the server renders by its own template (openai)."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key, if it wants one (openai); the key is written nowhere."""
    concurrency: int = 16
    """Requests under way at a time (openai)."""
    timeout: float = 1800.0
    """Seconds until a request is given up and asked again (openai)."""
    retries: int = 6
    """Times that a request is asked again, after 1, 2, 4 ... seconds (openai)."""

    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies.

        Raises:
            UserError: nowhere.
        """
        folder = self.tokenizer or Path(self.model)
        if not folder.exists():
            if self.tokenizer is None and self.backend == "openai":
                raise UserError(
                    f"--model {self.model} is a server's name for it; give its tokenizer's folder by --tokenizer."
                )
            raise UserError(f"{folder}: there is no such folder; give a model in Hugging Face format.")
        return folder
