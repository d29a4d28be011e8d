"""The bytes that each id stands for, so that tokens become text by one look-up each, 20 times as fast as decoding.

Known are the byte-level vocabularies (GPT-2's letters for bytes), those with "▁" for a space (sentencepiece's and their
tokenizer.json), and raw bytes. A special token becomes a space: what it marks is no text. A space that decoding would
leave out at the beginning of a text stays.
"""

from __future__ import annotations

import json
import re
from typing import Any

from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.errors import UserError

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each id, [vocabulary].

    Raises:
        UserError: the tokenizer decodes in another way than token by token.
    """
    recipe = tokenizer.recipe
    if recipe.kind == "bytes":
        return [bytes([i]) for i in range(256)]
    if recipe.kind == "sentencepiece":
        return _sentencepiece(recipe.content())
    model = json.loads(recipe.content())
    steps = _types(model.get("decoder"))
    vocabulary = model["model"].get("vocab", {})
    pieces = {piece: i for i, (piece, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else vocabulary
    table = [b""] * tokenizer.vocab_size
    if "ByteLevel" in steps:
        letters = _byte_letters()
        for piece, i in pieces.items():
            table[i] = b"".join(letters.get(letter, letter.encode()) for letter in piece)
    elif steps & {"Metaspace", "Replace"} and not steps - {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        for piece, i in pieces.items():
            table[i] = _piece_bytes(piece)
    else:
        raise UserError(f"{tokenizer.path}: decodes by {', '.join(sorted(steps)) or 'nothing'}, not token by token.")
    for token in model.get("added_tokens") or []:
        table[token["id"]] = b" " if token["special"] else token["content"].encode()
    return table


def _piece_bytes(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()


def _sentencepiece(content: bytes) -> list[bytes]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    special = [model.is_control(i) or model.is_unknown(i) for i in range(model.vocab_size())]
    return [b" " if special[i] else _piece_bytes(model.id_to_piece(i)) for i in range(len(special))]


def _types(step: Any) -> set[str]:
    """The kinds of a decoder's steps."""
    if not step:
        return set()
    return set().union(*map(_types, step["decoders"])) if step["type"] == "Sequence" else {step["type"]}


def _byte_letters() -> dict[str, bytes]:
    """What stands for each byte in a byte-level vocabulary: its letter if it can be seen, else one from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): bytes([byte]) for byte in seen} | {chr(256 + i): bytes([byte]) for i, byte in enumerate(hidden)}
