"""All 13 tasks: exact lengths with several tokenizers against a slow twin, oracles, and what a sample holds."""

import random
import re

import pytest

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.ruler import asking
from megatron_ultralong.evaluation.plain_tokenizer import tokenizer_of
from megatron_ultralong.evaluation.registry import MakeOptions, family_tasks, find_task, find_tasks
from megatron_ultralong.evaluation.rendering import prompt_ids, rendered
from megatron_ultralong.evaluation.samples import TooShortError
from tests.data.tokenizer.shapes import build

BUDGETS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
NAMES = [task.name for task in family_tasks("ruler")]


@pytest.fixture(scope="module")
def options(tokenizer, prose_path, question_folder):
    def of(length=6000, count=2, **changes):
        given = {"tokenizer": tokenizer, "haystack": prose_path, "data": question_folder}
        return MakeOptions(lengths=(length,), count=count, **given | changes)

    return of


def test_the_thirteen_with_their_budgets():
    assert len(NAMES) == len(set(NAMES)) == 13
    for name in NAMES:
        assert find_task(name).budget == BUDGETS.get(name.removeprefix("ruler/"), 128)
    assert [task.name for task in find_tasks(["ruler", "ruler/vt"])] == NAMES


def exhaustive(plan, measure, limit):
    """The slow twin of `fit`: every number of units in turn."""
    found = None
    count, tokens = 0, measure(0)
    while tokens <= limit:
        found = count, tokens
        count += 1
        tokens = measure(count)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape, form", [("llama3", "base"), ("llama3", "chat"), ("mistral-first", "base"),
                                         ("sentencepiece-unigram", "base"), ("bytes", "base")])  # fmt: skip
def test_prompts_are_as_long_as_they_say_and_as_can_be(
    name, shape, form, options, tokenizer_folder, tmp_path_factory, monkeypatch
):
    path = tokenizer_folder if shape == "llama3" else build(shape, tmp_path_factory.mktemp(shape))
    tokenizer: ChatTokenizer = tokenizer_of(path, form)
    task = find_task(name)
    length = {"cwe": 7000, "fwe": 1500, "vt": 2500, "qa_2": 2500}.get(name.removeprefix("ruler/"), 1500)
    given = options(length, 1, tokenizer=tokenizer, form=form)
    (sample,) = task.make(given)
    ids = prompt_ids(rendered(sample, form, tokenizer), form, tokenizer)
    assert len(ids) == sample.prompt_tokens <= length - task.budget
    assert (sample.length, sample.max_new_tokens, sample.form) == (length, task.budget, form)
    monkeypatch.setattr(asking, "fit", exhaustive)
    (slow,) = task.make(given)
    assert sample.prompt_tokens >= slow.prompt_tokens - 1, (sample.prompt_tokens, slow.prompt_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_depends_on_its_length_and_number_alone(name, options):
    make = find_task(name).make
    both = list(make(options(6500, 2)))
    assert list(make(options(6500, 2, only=range(1, 2)))) == both[1:]
    assert [each.index for each in both] == [0, 1] and both[0].input != both[1].input
    several = list(make(MakeOptions(**{**vars(options(1, 1)), "lengths": (6000, 6500), "count": 2})))
    assert [each for each in several if each.length == 6500] == both
    assert next(make(options(6500, 1, seed=7))).input != both[0].input


@pytest.mark.parametrize("name", NAMES)
def test_oracles(name, options):
    task = find_task(name)
    for sample in task.make(options(6500, 3)):
        assert task.score(", ".join(sample.outputs), sample) == 1  # a perfect copier
        assert task.score(sample.input.upper(), sample) == 1  # who answers with everything: what substrings give
        assert task.score("", sample) == task.score("I do not know.", sample) == 0
        share = task.score(sample.outputs[0], sample)
        assert share == (1 if name.startswith("ruler/qa") else 1 / len(sample.outputs))


@pytest.mark.parametrize("name, pattern", [("ruler/cwe", r"\d+\. (\S+)"), ("ruler/fwe", r"\b([a-z]{6})\b")])
def test_a_uniform_guesser_scores_its_chance(name, pattern, options):
    """One who names as many of the words in the text as there are references, each as likely as any other."""
    task, rng, scores, expected = find_task(name), random.Random(1), [], []
    for sample in task.make(options(6000, 4)):
        text = sample.input[sample.input.rindex("\n1. ") :] if name == "ruler/cwe" else sample.input
        text = text[text.index("occurs. ") + 8 :] if name == "ruler/fwe" else text
        words = sorted(set(re.findall(pattern, text.partition("\nQuestion")[0])))
        assert len(words) == sample.extra["candidates"]
        for _ in range(2000):
            guess = rng.sample(words, len(sample.outputs))
            scores.append(sum(word in guess for word in sample.outputs) / len(sample.outputs))
            expected.append(len(sample.outputs) / len(words))
    mean = sum(expected) / len(expected)
    assert sum(scores) / len(scores) == pytest.approx(mean, abs=4 * (mean / len(scores)) ** 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_length_that_is_too_short_is_refused_in_one_sentence(name, options):
    for length in (10, 128, 200):
        with pytest.raises(TooShortError, match=f"^{name}: length {length} is too short: [^\n]*raise --lengths.$"):
            list(find_task(name).make(options(length, 1)))


@pytest.mark.parametrize("name", ["ruler/niah_single_2", "ruler/qa_1"])
def test_what_is_missing_is_asked_for(name, tokenizer):
    with pytest.raises(UserError, match=r"by --(haystack|data)"):
        list(find_task(name).make(MakeOptions(tokenizer=tokenizer, lengths=(4000,), count=1)))
