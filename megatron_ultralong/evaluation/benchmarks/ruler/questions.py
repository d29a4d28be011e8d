"""RULER's question answering: a question of SQuAD or HotpotQA, its documents among others of the same set.

Documents stand in random order, numbered. Those that hold the answer are always there; for SQuAD the article's other
paragraphs come next, then any. One unit is a document; room that the next one would pass takes a shorter one. Where
more are needed than there are, all are repeated, as RULER does. The data are the user's own files as published.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.counting import Counter
from megatron_ultralong.evaluation.benchmarks.fitting import SLACK, ListedPlan
from megatron_ultralong.evaluation.benchmarks.prompt_templates import fill
from megatron_ultralong.evaluation.benchmarks.ruler.asking import Asking
from megatron_ultralong.evaluation.samples import Sample
from megatron_ultralong.files import read_json

FILES = {
    "squad": ("squad.json", "dev-v2.0.json", "dev-v1.1.json"),
    "hotpotqa": ("hotpotqa.json", "hotpot_dev_distractor_v1.json"),
}
"""Names that the data have in RULER's folder and where they are published."""
_LOOK_AHEAD = 256  # documents looked through for one that fits the room left


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: asked.
        answers: references.
        gold: documents that hold the answer, by number.
        near: documents that come before any others.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """A set."""

    path: Path
    questions: tuple[Question, ...]
    documents: tuple[str, ...]


def draw_question(asking: Asking, kind: str) -> Sample:
    """One sample; its index is the question's number.

    Raises:
        UserError: the data are missing or hold fewer questions, or the length is too short.
    """
    found = questions_of(_data_file(asking, kind), kind)
    wanted = max(asking.index + 1, asking.options.count)
    if wanted > len(found.questions):
        raise UserError(
            f"{found.path}: it holds {len(found.questions):,} questions, and {wanted:,} are asked for; lower --samples."
        )
    question, rng = found.questions[asking.index], asking.rng
    order = _order(found, question, rng)
    counts = _counts(asking.counter, found)
    order = _enough(order, [*question.gold, *order], counts, asking.room)
    tokens = counts.of(order) + _heading_tokens(asking)
    places = [rng.random() for _ in range(len(question.gold) + len(order) + 1)]
    document = asking.wording.document

    def build(extra: list[int]) -> Sample:
        return _written(asking, question, found, [*question.gold, *extra], places, document)

    sample = asking.fitted(ListedPlan(tokens), lambda count: build(order[:count]), "further documents", 0)
    count = int(sample.extra["documents"]) - len(question.gold)
    spare = asking.room - sample.prompt_tokens
    ahead = [number for number in range(count, min(count + _LOOK_AHEAD, len(order))) if tokens[number] <= spare]
    if ahead:
        best = max(ahead, key=lambda number: int(tokens[number]))
        longer = build([*order[:count], order[best]])
        with_it = asking.counter.prompt(longer)
        if with_it <= asking.room:
            sample = dataclasses.replace(longer, prompt_tokens=with_it)
    return sample


def _written(
    asking: Asking, question: Question, found: Questions, chosen: list[int], chances: list[float], document: str
) -> Sample:
    """The sample with these documents, each where its chance puts it."""
    ranks = sorted(range(len(chosen)), key=lambda number: chances[number])
    texts = [
        fill(document, {"i": i, "document": found.documents[chosen[number]]}) for i, number in enumerate(ranks, start=1)
    ]
    first = ranks.index(0)
    begin = sum(map(len, texts[:first])) + 2 * first
    return asking.sample(
        asking.wording.qa, "\n\n".join(texts), {"query": question.text}, question.answers,
        place=(begin, begin + len(texts[first])), depth=first / max(len(ranks) - 1, 1) if len(ranks) > 1 else 0.0,
        documents=len(chosen), haystack_repeats=round(max(len(chosen) / len(found.documents), 1.0), 4),
    )  # fmt: skip


def _order(found: Questions, question: Question, rng: random.Random) -> list[int]:
    """Further documents in the order in which they are taken, each once."""
    taken = {*question.gold, *question.near}
    near = list(question.near)
    others = [number for number in range(len(found.documents)) if number not in taken]
    rng.shuffle(near)
    rng.shuffle(others)
    return near + others


def _enough(order: list[int], everything: list[int], counts: _Counts, room: int) -> list[int]:
    """The first documents that pass `room` together; where need be `everything` follows, over and over."""
    total, end = 0, 0
    while total <= room * SLACK:
        if end >= len(order):
            order = order + everything
        block = order[end : end + 1024]
        total += max(int(counts.of(block).sum()), 1)
        end += len(block)
    return order[: end + _LOOK_AHEAD]


class _Counts:
    """Tokens of documents, counted when they are first wanted."""

    def __init__(self, counter: Counter, documents: tuple[str, ...]) -> None:
        self._counter, self._documents = counter, documents
        self._known = np.full(len(documents), -1, np.int64)

    def of(self, numbers: list[int]) -> npt.NDArray[np.int64]:
        """Tokens of each, with the blank line before it."""
        wanted = [number for number in dict.fromkeys(numbers) if self._known[number] < 0]
        if wanted:
            self._known[wanted] = self._counter.each([f"\n\n{self._documents[number]}" for number in wanted])
        return self._known[numbers]


@functools.lru_cache(maxsize=4)
def _counts(counter: Counter, found: Questions) -> _Counts:
    return _Counts(counter, found.documents)


def _heading_tokens(asking: Asking) -> int:
    """What numbering adds to a document."""
    heading = fill(asking.wording.document, {"i": 1000, "document": "x"})
    return int(asking.counter.each([heading])[0] - asking.counter.each(["x"])[0])


def _data_file(asking: Asking, kind: str) -> Path:
    names = " or ".join(FILES[kind])
    data = asking.options.data
    if data is None:
        raise UserError(f"{asking.task}: it needs {names}, as published; name the file or its folder by --data.")
    if not data.is_dir():
        return data
    for name in FILES[kind]:
        if (data / name).exists():
            return data / name
    raise UserError(f"{data}: {asking.task} needs {names} in it, as published, and none is there; add one.")


@functools.lru_cache(maxsize=4)
def questions_of(path: Path, kind: str) -> Questions:
    """Questions and documents of a file in SQuAD's or HotpotQA's own format.

    Raises:
        UserError: it is of another format, or holds no question that has an answer.
    """
    rows = read_json(path, "the questions", "give SQuAD's or HotpotQA's development set as published")
    try:
        found = _squad(path, rows) if kind == "squad" else _hotpot(path, rows)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        found = Questions(path, (), ())
    if not found.questions:
        raise UserError(f"{path}: it holds no questions in {kind}'s published format; give {' or '.join(FILES[kind])}.")
    return found


def _squad(path: Path, rows: Any) -> Questions:
    """Paragraphs are documents, each once; unanswerable questions are left out."""
    articles = [[paragraph["context"] for paragraph in article["paragraphs"]] for article in rows["data"]]
    documents = tuple(sorted({text for article in articles for text in article}))
    number = {text: i for i, text in enumerate(documents)}
    questions = [
        Question(
            asked["question"],
            tuple(answer["text"] for answer in asked["answers"]),
            (number[paragraph["context"]],),
            tuple(dict.fromkeys(number[text] for text in texts if text != paragraph["context"])),
        )
        for article, texts in zip(rows["data"], articles, strict=True)
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
        if not asked.get("is_impossible", False)
    ]
    return Questions(path, tuple(question for question in questions if question.answers), documents)


def _hotpot(path: Path, rows: Any) -> Questions:
    """A title and its sentences are a document, each once; a question's ten documents are always there."""
    contexts = [tuple(f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]) for row in rows]
    documents = tuple(sorted({text for context in contexts for text in context}))
    number = {text: i for i, text in enumerate(documents)}
    questions = [
        Question(row["question"], (row["answer"],), tuple(dict.fromkeys(number[text] for text in context)), ())
        for row, context in zip(rows, contexts, strict=True)
    ]
    return Questions(path, tuple(questions), documents)
