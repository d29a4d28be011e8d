import random
import re

import pytest

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.keys import NAMES, fact, question, random_facts
from megatron_ultralong.evaluation.benchmarks.retrieval import (
    _chat,
    _exchange_tokens,
    answer,
    count_tokens,
    recall_conversation,
)


def test_wording() -> None:
    assert fact("red", "01234") == "The red key is 01234."
    assert question("red") == "What is the red key?"
    assert answer("red", "01234") == "The red key is 01234."
    assert len(NAMES) == len(set(NAMES)) == 32


def test_random_facts_have_different_names(rng: random.Random) -> None:
    facts = random_facts(rng, 32)
    assert {name for name, _ in facts} == set(NAMES)
    assert all(re.fullmatch("[0-9]{5}", digits) for _, digits in facts)
    for count in (0, 33):
        with pytest.raises(UserError, match=f"facts = {count} "):
            random_facts(rng, count)


def test_a_recall_conversation_holds_its_facts_and_answers(
    rng: random.Random, haystack: Haystack, tokenizer: ChatTokenizer
) -> None:
    messages = recall_conversation(rng, haystack, tokenizer, max_tokens=400, facts=3, filler_tokens=150, questions=4)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 4
    text, first = messages[0]["content"].split("\n\n")
    facts = [line for line in text.split("\n") if re.fullmatch(r"The \w+ key is \d{5}\.", line)]
    assert len(facts) == 3
    assert len(text.split("\n")) > 6
    questions = [first, *(message["content"] for message in messages[2::2])]
    for asked, given in zip(questions, messages[1::2], strict=True):
        assert given["content"] in facts
        assert asked == f"What is the {given['content'].split()[1]} key?"


@pytest.mark.parametrize("max_tokens", [90, 128, 256])
def test_as_many_questions_as_fit_and_never_too_long(
    rng: random.Random, haystack: Haystack, tokenizer: ChatTokenizer, max_tokens: int
) -> None:
    for _ in range(60):
        filler = rng.randrange(max_tokens)
        messages = recall_conversation(rng, haystack, tokenizer, max_tokens=max_tokens, facts=2, filler_tokens=filler)
        tokens = count_tokens(tokenizer, messages)
        assert max_tokens - max(_exchange_tokens(tokenizer, name) for name in NAMES) < tokens <= max_tokens


def test_the_sum_of_pieces_is_the_count_of_the_rendered_chat(
    rng: random.Random, haystack: Haystack, tokenizer: ChatTokenizer
) -> None:
    for _ in range(50):
        facts = random_facts(rng, 2)
        # The template trims the text, which must not start with an indented line.
        lines = [line.lstrip() for line in haystack.take(rng, rng.randrange(200))]
        asked = [rng.choice(facts) for _ in range(rng.randint(1, 4))]
        messages = _chat(lines, facts, [0.0, 0.5], asked)
        planned = count_tokens(tokenizer, _chat([], facts, [0.0, 0.5], asked[:1]))
        planned += sum(haystack.count(line) for line in lines)
        planned += sum(_exchange_tokens(tokenizer, name) for name, _ in asked[1:])
        # One token's doubt: punctuation before the blank line may or may not be one token with the line breaks.
        assert abs(planned - count_tokens(tokenizer, messages)) <= 1


def test_a_length_too_short_for_facts_and_questions(
    rng: random.Random, haystack: Haystack, tokenizer: ChatTokenizer
) -> None:
    with pytest.raises(UserError, match=r"max_tokens = 40 is too short: 2 facts and 1 questions take \d+ tokens"):
        recall_conversation(rng, haystack, tokenizer, max_tokens=40, facts=2, filler_tokens=10)


def test_the_same_seed_gives_the_same_chat(haystack: Haystack, tokenizer: ChatTokenizer) -> None:
    first, again, other = (
        recall_conversation(random.Random(seed), haystack, tokenizer, max_tokens=200, facts=2, filler_tokens=100)
        for seed in (1, 1, 2)
    )
    assert first == again != other
