import random
import re

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks import needles
from megatron_ultralong.evaluation.benchmarks.needle_kinds import SEVERAL, chance_of, digits, sentence
from megatron_ultralong.evaluation.benchmarks.words import COMMON
from megatron_ultralong.evaluation.registry import MakeOptions, find_task, grid_lengths
from megatron_ultralong.evaluation.rendering import forced_prompt, prompt_ids, rendered
from megatron_ultralong.evaluation.samples import TooShortError

GRID = ("needles", "needles/sentence", "needles/several", "needles/distractors")
NAMES = (*GRID, "recall", "recall/three")
KEY = re.compile(r"^The (\w+) key is (\d{5})\.$", re.MULTILINE)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    rng = random.Random(9)
    lines = [
        " ".join(" ".join(rng.sample(COMMON, rng.randint(3, 9))).capitalize() + "." for _ in range(rng.randint(1, 4)))
        for _ in range(700)
    ]
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def make(tokenizer, book):
    def of(name, *lengths, form="chat", **changes):
        given = {"tokenizer": tokenizer, "haystack": book, "form": form, "count": 4, "depths": 5}
        return list(find_task(name).make(MakeOptions(lengths=lengths, **given | changes)))

    return of


def test_the_papers_grid():
    lengths = grid_lengths(1 << 20)
    assert len(lengths) == 40 and lengths[0] == 26_214 and lengths[-1] == 1 << 20
    assert needles.depth_grid(10) == [0, 0.1111, 0.2222, 0.3333, 0.4444, 0.5556, 0.6667, 0.7778, 0.8889, 1]
    assert needles.depth_grid(1) == [0.5]
    assert grid_lengths(3, 40) == (1, 2, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize("lead_in", [False, True])
def test_prompts_fill_their_length_and_hold_what_is_asked(make, tokenizer, name, form, lead_in):
    task = find_task(name)
    for sample in make(name, 1500, form=form, lead_in=lead_in):
        ids = prompt_ids(rendered(sample, form, tokenizer), form, tokenizer)
        assert len(ids) == sample.prompt_tokens and 0 <= 1500 - task.budget - len(ids) <= 8
        needle = sample.input[slice(*sample.place)]
        assert sample.outputs[0] in needle and all(answer in sample.input for answer in sample.outputs)
        assert "\n" not in needle and sample.input[sample.place[1]] == "\n"
        assert task.score(" and ".join(sample.outputs), sample) == 1 and task.score("", sample) == 0
        right = sample.answer_prefix + sample.lead_in + sample.outputs[0]
        assert right.removeprefix("Answer: ") + "." == needle
        assert lead_in == (sample.lead_in == " ")
        assert sample.answer_prefix.startswith("Answer:") == (form == "base")


@pytest.mark.parametrize("name", GRID)
def test_depths_are_reached_and_other_lengths_change_nothing(make, name):
    both = make(name, 1200, 2400, trials=2)
    assert make(name, 2400, trials=2) == [each for each in both if each.length == 2400]
    assert make(name, 2400, trials=2, only=range(3, 7)) == [each for each in both if each.length == 2400][3:7]
    assert [each.index for each in both] == [*range(10)] * 2
    assert [each.depth for each in both] == needles.depth_grid(5) * 4
    for sample in both:
        begin, end = sample.place
        text = sample.input.rsplit("\n\n", 1)[0]
        assert begin / max(len(text) - (end - begin), 1) == pytest.approx(sample.depth, abs=0.12)


def test_samples_of_a_trial_begin_alike_at_every_length(make):
    samples = make("needles", 1200, 2400, trials=2)
    for group in {sample.group for sample in samples}:
        same = [sample for sample in samples if sample.group == group and sample.depth > 0]
        assert len(same) == 8
        shared = min(sample.place[0] for sample in same) - 1  # a needle stands on a line of its own
        assert shared > 200 and len({sample.input[:shared] for sample in same}) == 1
    first, second = (next(each for each in samples if each.index == i and each.length == 2400) for i in (4, 9))
    assert first.group != second.group and first.input[:200] != second.input[:200]


def test_kinds(make):
    for sample in make("needles", 1500):
        assert len(KEY.findall(sample.input)) == 1
        assert sample.input.endswith(f"\n\nWhat is the {KEY.search(sample.input)[1]} key?")
    for sample in make("needles/several", 1500):
        found = dict(KEY.findall(sample.input))
        assert len(found) == SEVERAL and set(found.values()) == set(sample.outputs)
        assert all(name in sample.input.rsplit("\n", 1)[1] for name in found)
    for sample in make("needles/distractors", 1500):
        found = dict(KEY.findall(sample.input))
        asked = re.search(r"What is the (\w+) key\?$", sample.input)[1]
        assert len(found) == 9 and sample.outputs == (found[asked],)
    for sample in make("needles/sentence", 1500):
        needle = sample.input[slice(*sample.place)]
        assert re.fullmatch(r"\w+'s favourite place in \w+ is the [a-z]+ [a-z]+ by the [a-z]+ [a-z]+\.", needle)
    for name, keys in (("recall", 1), ("recall/three", 3)):
        samples = make(name, 600)
        assert len(samples) == 4 and all(sample.depth is None and not sample.group for sample in samples)
        for sample in samples:
            found = dict(KEY.findall(sample.input))
            asked = re.search(r"What is the (\w+) key\?$", sample.input)[1]
            assert len(found) == keys and sample.outputs == (found[asked],)
        assert len({sample.input[:60] for sample in samples}) == 4


def test_exact_tasks_can_be_judged_by_teacher_forcing(make, tokenizer):
    for name in NAMES:
        assert find_task(name).exact == (name != "needles/several")
    (sample, *_) = make("needles", 1200)
    forced = forced_prompt(sample, "chat", tokenizer)
    ((first, last),) = forced.answers
    assert tokenizer.decode(forced.ids[first:last].tolist()).strip() == sample.outputs[0]


def test_a_uniform_guesser_scores_its_chance():
    rng, hits, tries = random.Random(2), 0, 200_000
    for _ in range(tries):
        hits += f"{rng.randrange(10**5):05d}" == f"{rng.randrange(10**5):05d}"
    assert chance_of(digits) == 1e-5 and hits <= 12  # two are expected
    assert chance_of(sentence) == pytest.approx((210 * 422) ** -2)


def test_a_short_haystack_repeats_and_says_so(make, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("A line.\nAnother line.\n")
    (sample,) = make("needles", 900, haystack=path, depths=1)
    assert sample.extra["haystack_repeats"] > 40
    assert sample.input.count("Another line.") == pytest.approx(sample.extra["haystack_repeats"], abs=1.1)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_made_is_said(make, name):
    with pytest.raises(TooShortError, match=f"^{name}: length 40 is too short: [^\n]*raise --lengths.$"):
        make(name, 40)
    with pytest.raises(UserError, match="name them by --haystack"):
        make(name, 1000, haystack=None)
