"""What is added to the corpus: its documents in short pieces, long chats about keys hidden in them (two arms), or
short chats in RULER's wording, from which `run.py base` teaches the base what it cannot do yet and arms are tuned; and
questions of that kind, from documents that no arm sees, which ask whether the base's ability stays.

python examples/ablations/make_arm_data.py short --corpus corpus.jsonl --tokenizer MODEL --length 256 ...
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from megatron_ultralong.cli import run
from megatron_ultralong.data.tokenizer.chat import ChatTokenizer, Message
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.prompt_templates import fill
from megatron_ultralong.evaluation.benchmarks.retrieval import count_tokens, recall_conversation
from megatron_ultralong.evaluation.benchmarks.ruler.tracking import HOPS
from megatron_ultralong.evaluation.benchmarks.ruler.wording import OURS, Template
from megatron_ultralong.evaluation.samples import Sample, write_samples
from megatron_ultralong.files import atomic_file

MULTIKEY, MULTIVALUE, TRACKING = "ruler/niah_multikey_1", "ruler/niah_multivalue", "ruler/vt"
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


def ruler(texts: list[str], tokenizer: ChatTokenizer, length: int, rng: random.Random) -> Iterator[tuple[str, object]]:
    """Chats of at most `length` tokens: one of several keys, all values of a key, all variables of a chain."""
    for question in _questions(texts, tokenizer, length, rng):
        yield "messages", question.chat


def short_ruler(texts: list[str], tokenizer: ChatTokenizer, length: int, rng: random.Random) -> Iterator[Sample]:
    """The same as samples to be asked, under the names of RULER's own tasks."""
    for index, question in enumerate(_questions(texts, tokenizer, length, rng)):
        yield Sample(
            task=question.task,
            index=index,
            input=question.text,
            outputs=tuple(question.answers),
            length=length,
            answer_prefix=question.prefix,
            max_new_tokens=count_tokens(tokenizer, question.chat[1:]),
            prompt_tokens=count_tokens(tokenizer, question.chat[:1]),
            form="chat",
        )


@dataclasses.dataclass(frozen=True)
class Question:
    """Of one of RULER's tasks: the prompt, how its answer begins, and what is to be found."""

    task: str
    text: str
    prefix: str
    answers: list[str]

    @property
    def chat(self) -> list[Message]:
        """With its answer."""
        said = f"{self.prefix.rstrip()} {(' ' if self.task == TRACKING else ', ').join(self.answers)}"
        return [{"role": "user", "content": self.text}, {"role": "assistant", "content": said}]


def _questions(texts: list[str], tokenizer: ChatTokenizer, length: int, rng: random.Random) -> Iterator[Question]:
    """That fit `length` tokens with their answers.

    The questions and needles are RULER's as our evaluation words them. Its own prompts do not fit into 256 tokens with
    the answer's budget, nor with variable tracking's solved example; these have neither.
    """
    haystack = Haystack(texts, tokenizer)

    def fits(question: Question) -> bool:
        return count_tokens(tokenizer, question.chat) <= length

    while True:
        told = rng.choice((_keys, _values, _chain))(rng)
        filler = haystack.take(rng, rng.randint(0, length))
        while filler and not fits(_question(told, rng, filler)):
            filler.pop()
        if fits(found := _question(told, rng, filler)):
            yield found


Told = tuple[str, Template, dict[str, object], list[str], list[str]]
"""The task, the template and its fields, the lines that tell, and the answers in order."""


def _question(told: Told, rng: random.Random, filler: list[str]) -> Question:
    task, template, fields, lines, answers = told
    text, prefix, _ = template.compose("\n".join(_mixed(rng, lines, filler)), fields)
    return Question(task, text, prefix, answers)


def _keys(rng: random.Random) -> Told:
    told = dict((_name(rng), _number(rng)) for _ in range(rng.randint(2, 4)))
    asked = rng.choice(list(told))
    return MULTIKEY, OURS.niah_one, {"type_needle_v": "number", "query": asked}, _needles(told.items()), [told[asked]]


def _values(rng: random.Random) -> Told:
    name, values = _name(rng), [_number(rng) for _ in range(rng.randint(2, 3))]
    fields: dict[str, object] = {"type_needle_v": "numbers", "query": name}
    return MULTIVALUE, OURS.niah, fields, _needles((name, each) for each in values), values


def _chain(rng: random.Random) -> Told:
    names = ["".join(rng.choices(string.ascii_uppercase, k=rng.choice((3, 5)))) for _ in range(HOPS + 1)]
    value = str(rng.randrange(10000, 99999))
    held = [value, *(f"VAR {name}" for name in names)]
    lines = [f"VAR {name} = {each}" for name, each in zip(names, held, strict=False)]
    return TRACKING, OURS.vt, {"query": value, "num_v": len(names)}, lines, names


def _name(rng: random.Random) -> str:
    return f"{rng.choice(OURS.adjectives)}-{rng.choice(OURS.nouns)}"


def _number(rng: random.Random) -> str:
    return str(rng.randint(10**6, 10**7 - 1))


def _needles(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [fill(OURS.needle, {"type_needle_v": "numbers", "key": key, "value": value}) for key, value in pairs]


def _mixed(rng: random.Random, lines: list[str], filler: list[str]) -> list[str]:
    """Both in one text, each in its order."""
    places = set(rng.sample(range(len(lines) + len(filler)), len(lines)))
    told, other = iter(lines), iter(filler)
    return [next(told if place in places else other) for place in range(len(lines) + len(filler))]


MAKERS = {"short": short, "needles": needles, "ruler": ruler}


def make_arm_data(
    part: Literal["short", "needles", "ruler", "short_ruler"],
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
        part: short: pieces of documents; needles: long chats; ruler: short chats in RULER's wording; short_ruler: the
            same as questions to be asked, each counted as `length` tokens.
        corpus: documents, as make_data.py writes them.
        tokenizer: folder of the model's tokenizer.
        length: tokens of a piece or chat at most.
        tokens: how many at least.
        output: file to write.
        seed: of every choice.
    """
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    own, made = ChatTokenizer(tokenizer), 0
    rng = random.Random(seed)
    if part == "short_ruler":
        write_samples(output, itertools.islice(short_ruler(texts, own, length, rng), -(-tokens // length)))
        return
    rows = MAKERS[part](texts, own, length, rng)
    with atomic_file(output) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for field, value in rows:
            stream.write(json.dumps({field: value, "source": part}, ensure_ascii=False) + "\n")
            made += len(own.encode(value)) if isinstance(value, str) else length
            if made >= tokens:
                return


if __name__ == "__main__":
    run(make_arm_data)
