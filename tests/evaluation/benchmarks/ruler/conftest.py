"""Haystacks and questions in the formats that users have them in."""

import json
import random
from pathlib import Path

import pytest

from megatron_ultralong.evaluation.benchmarks.words import COMMON


@pytest.fixture(scope="session")
def prose_path(tmp_path_factory) -> Path:
    """Some 20,000 words in sentences."""
    rng = random.Random(3)
    sentences = [" ".join(rng.sample(COMMON, rng.randint(4, 14))).capitalize() + "." for _ in range(2200)]
    path = tmp_path_factory.mktemp("prose") / "books.jsonl"
    texts = [" ".join(sentences[i : i + 40]).replace(". ", ".\n", 3) for i in range(0, len(sentences), 40)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


@pytest.fixture(scope="session")
def question_folder(tmp_path_factory) -> Path:
    """Files as SQuAD 2.0 and HotpotQA publish them, small."""
    rng = random.Random(4)
    folder = tmp_path_factory.mktemp("questions")
    paragraphs = [f"Paragraph {i} says " + " ".join(rng.sample(COMMON, rng.randint(8, 40))) + "." for i in range(60)]
    articles = []
    for first in range(0, 60, 6):
        rows = []
        for number in range(first, first + 6):
            words = paragraphs[number].split()
            asked = {"id": str(number), "question": f"What says {number}?", "is_impossible": False}
            asked["answers"] = [{"text": words[3], "answer_start": 0}, {"text": words[4], "answer_start": 1}]
            never = {"id": f"{number}x", "question": "Never?", "is_impossible": True, "answers": []}
            rows.append({"context": paragraphs[number], "qas": [never, asked]})
        articles.append({"title": str(first), "paragraphs": rows})
    (folder / "dev-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    hotpot = [
        {
            "_id": str(i),
            "question": f"Which of {i}?",
            "answer": f"it is {i}",
            "context": [[f"Title {i * 7 + j}", [f"Fact {i * 7 + j}.", f" And it is {i}."]] for j in range(10)],
            "supporting_facts": [[f"Title {i * 7}", 0]],
        }
        for i in range(20)
    ]
    (folder / "hotpot_dev_distractor_v1.json").write_text(json.dumps(hotpot))
    return folder
