"""A tiktoken file: tokens in base64 and their ranks, and nothing of the split that its model was trained with.

A file of as many ranks as a public model's gets that model's split and normal form; any other gets Llama 3's, and the
log says so. It holds no special tokens, so none is recognised.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA4 = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_QWEN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_MODELS = {
    128000: ("Llama 3", _LLAMA3, False),
    200000: ("Llama 4", _LLAMA4, False),
    151643: ("Qwen", _QWEN, True),
    248044: ("Qwen 3.5", _QWEN35, True),
}
"""Ranks -> model, split, and whether it composes marks (NFC) first."""


def is_tiktoken(file: Path) -> bool:
    """Whether a file's first line is a token in base64 and its rank; sentencepiece models are binary."""
    with file.open("rb") as stream:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n?", stream.readline(1000)) is not None


def convert_tiktoken(file: Path) -> bytes:
    """The contents of a tokenizer.json that gives the same ids.

    Raises:
        UserError: tiktoken is not installed.
        Exception: of several types, for a broken file.
    """
    from transformers.convert_slow_tokenizer import TikTokenConverter

    try:
        import tiktoken  # noqa: F401  # the converter reads the file with it
    except ImportError:
        raise UserError(f"{file}: needs tiktoken to be read; pip install tiktoken.") from None
    with file.open("rb") as stream:
        ranks = sum(not line.isspace() for line in stream)
    model, split, composed = _MODELS.get(ranks, ("", _LLAMA3, False))
    if not model:
        logger.warning(
            "%s: a tiktoken file of %s tokens is no model's that is known; Llama 3's split is taken.", file, ranks
        )
    converted = json.loads(TikTokenConverter(vocab_file=str(file), pattern=split).converted().to_str())
    if composed:
        converted["normalizer"] = {"type": "NFC"}
    return json.dumps(converted, ensure_ascii=False).encode()
