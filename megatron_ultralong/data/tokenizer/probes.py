"""Texts on which two encoders of one tokenizer part if they part at all: scripts, spaces, added tokens side by side.

gigatoken 0.10 takes no account of `single_word`, for one; what it will get wrong next is not known. So every added
token is tried beside letters, digits, marks and spaces of every kind, in its normal forms, in parts, and beside the
others.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterator
from typing import Any

from megatron_ultralong.data.tokenizer.encoders import Recipe

_BASE = [
    "",
    " ",
    "\n\n  x\t\r\n",
    "\tx",
    "I'm 1234567890, she'll; THEY'RE 'S x'd 12 345,67",
    "na\u00efve \u6771\u4eac \U0001f600\u00e9\u200b e\u0301 \u212b \ufb01",
    "\u3000\u00a0 \u2028\u0085 \ufeff\ufffd \x00\x7f",
    "<s></s> <unk> <0x0A> \u2581 a\u2581b \u2581\u2581",
    "a  b   c    d\te \t f\n g\n\n h \r\n\r\n i  \n  j   ",
    "\u0412\u0441\u0435 \u0441\u0447\u0430\u0441\u0442\u043b\u0438\u0432\u044b\u0435 \u0438\u0306 12\u00a0345",
    "\u0633\u0644\u0627\u0645 \u0645\u06cc\u200c\u0631\u0648\u0645 \u0661\u0662\u061f \u0648\u064e\u0627\u0644",
    "\u0915\u093c \u0958 \u0939\u093f\u0928\u094d\u0926\u0940 \u0967\u0968",
    "\u0e19\u0e49\u0e33 \u0e51\u0e52, \ud55c\uad6d \u1112\u1161\u11ab, \u304b\u3099 \u30ab\u3099 \uff76\uff9e \uff11",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1eb\U0001f1f7\u2764\ufe0f1\ufe0f\u20e3\U0001f44d\U0001f3fd",
    *("a" * 300, "0" * 100, "=" * 200, " " * 150, "\n" * 60, "\u6771" * 60, "ab " * 80),
]
_AROUND = [
    "a",
    " ",
    "7",
    "\n",
    ".",
    "  ",
    "_",
    "\t",
    "\u6771",
    "\u00a0",
    "\u0301",
    "\u0431",
    "\u3000",
    "",
    "\u0e01",
    "\u00e9",
]
_FULL = 64
"""Added tokens of one kind that get every neighbour; the others get a few, and each other."""


def probes(recipe: Recipe) -> Iterator[str]:
    """Texts to compare two encoders of `recipe` on."""
    yield from _BASE
    kinds: dict[Any, list[str]] = {}
    for entry in _added(recipe):
        content = entry["content"]
        kind = tuple(entry.get(flag) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special"))
        ends = tuple((end.isalnum(), end.isspace()) for end in (content[:1], content[-1:]))
        kinds.setdefault((kind, ends), []).append(content)
    for tokens in kinds.values():
        for i, token in enumerate(tokens):
            yield from (
                _full(token) if i < _FULL else [f"a{token}b {token} 7{token}7\n{token}{token}.\u6771{token}\u0301"]
            )
    tokens = [token for some in kinds.values() for token in some]
    for start in range(0, len(tokens), _FULL):
        some = tokens[start : start + _FULL]
        yield from ("".join(some), "".join(reversed(some)), " ".join(some), "x".join(some))
    yield from ("".join(pair) for pair in itertools.islice(itertools.permutations(tokens, 2), 1 << 10))


def _full(token: str) -> Iterator[str]:
    yield token
    yield "".join(f"{before}{token}" for before in _AROUND)
    yield "".join(f"{token}{after}" for after in _AROUND)
    yield f"{token}{token} {token}  {token}{token[:-1]}{token[1:]}{token.upper()}{token.lower()}{token.strip()}"
    yield f"a{token}b 7{token}7 _{token}_ \u6771{token}\u6771 \n{token}\n x{token} y {token}z"
    for form in ("NFD", "NFKC"):
        if unicodedata.normalize(form, token) != token:
            yield f"a {unicodedata.normalize(form, token)} b"


def _added(recipe: Recipe) -> list[dict[str, Any]]:
    """What is cut out of a text before the model sees it; of sentencepiece all that may be of this kind."""
    if recipe.kind == "huggingface":
        entries: list[dict[str, Any]] = json.loads(recipe.content()).get("added_tokens") or []
        return entries
    if recipe.kind == "bytes":
        return []
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=recipe.content())
    pieces = (processor.id_to_piece(i) for i in range(processor.vocab_size()) if not processor.is_byte(i))
    ends = ((piece, (piece[0], piece[-1])) for piece in pieces if len(piece) > 2)
    return [{"content": piece} for piece, ends in ends if not any(end.isalnum() or end == "\u2581" for end in ends)]
