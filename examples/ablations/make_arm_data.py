"""What two arms add to the corpus: its documents in short pieces, or long chats about keys hidden in them.

python examples/ablations/make_arm_data.py short --corpus corpus.jsonl --tokenizer MODEL --length 256 ...
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from megatron_ultralong.cli import run
from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.retrieval import recall_conversation
from megatron_ultralong.files import atomic_file

KEYS = 8  # in a long chat, each asked for as often as fits


def short(texts: list[str], tokenizer: ChatTokenizer, length: int, rng: random.Random) -> Iterator[tuple[str, object]]:
    """Pieces of whole lines of at most `length` tokens, in an order of chance; longer lines are left out."""
    rng.shuffle(texts)
    for text in texts:
        piece, size = "", 0
        for line in text.splitlines(keepends=True):
            tokens = len(tokenizer.encode(line))
            if piece and size + tokens > length:
                yield "text", piece
                piece, size = "", 0
            if tokens <= length:
                piece, size = piece + line, size + tokens
        if piece:
            yield "text", piece


def needles(
    texts: list[str], tokenizer: ChatTokenizer, length: int, rng: random.Random
) -> Iterator[tuple[str, object]]:
    """Chats of `length` tokens about keys that are hidden in the documents."""
    haystack = Haystack(texts, tokenizer)
    while True:
        yield (
            "messages",
            recall_conversation(
                rng, haystack, tokenizer, max_tokens=length, facts=KEYS, filler_tokens=length, questions=KEYS
            ),
        )


def make_arm_data(
    part: Literal["short", "needles"],
    /,
    *,
    corpus: Path,
    tokenizer: Path,
    length: int,
    tokens: int,
    output: Path,
    seed: int = 1,
) -> None:
    """Write JSON Lines of at least so many tokens, or of the whole corpus in pieces.

    Args:
        part: short: pieces of documents; needles: chats.
        corpus: documents, as make_data.py writes them.
        tokenizer: folder of the model's tokenizer.
        length: tokens of a piece at most, or of a chat.
        tokens: how many at least.
        output: file to write.
        seed: of every choice.
    """
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    own, made = ChatTokenizer(tokenizer), 0
    rows = (short if part == "short" else needles)(texts, own, length, random.Random(seed))
    with atomic_file(output) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for field, value in rows:
            stream.write(json.dumps({field: value, "source": part}, ensure_ascii=False) + "\n")
            made += len(own.encode(value)) if isinstance(value, str) else length
            if made >= tokens:
                return


if __name__ == "__main__":
    sys.exit(run(make_arm_data))
