"""What RULER's definitions say of a sample, read back out of its text."""

import math
import re
from collections import Counter

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.ruler.lines import insert_lines, places_between
from megatron_ultralong.evaluation.benchmarks.ruler.niah import _DEPTHS
from megatron_ultralong.evaluation.benchmarks.ruler.wording import OURS
from megatron_ultralong.evaluation.registry import MakeOptions, find_task
from megatron_ultralong.evaluation.samples import TooShortError

NEEDLE = re.compile(r"Among the secret (numbers|uuids), (\S+) has (\S+)\.")
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
WORD, NUMBER = "[a-z]+-[a-z]+", r"[1-9]\d{6}"


@pytest.fixture(scope="module")
def made(tokenizer, prose_path, question_folder):
    def of(name, length, count=3, **changes):
        given = {"tokenizer": tokenizer, "haystack": prose_path, "data": question_folder}
        return list(find_task(name).make(MakeOptions(lengths=(length,), count=count, **given | changes)))

    return of


@pytest.mark.parametrize(
    "name, needles, asked, key, value",
    [
        ("niah_single_1", 1, 1, WORD, NUMBER),
        ("niah_single_2", 1, 1, WORD, NUMBER),
        ("niah_single_3", 1, 1, WORD, UUID),
        ("niah_multikey_1", 4, 1, WORD, NUMBER),
        ("niah_multikey_2", None, 1, WORD, NUMBER),
        ("niah_multikey_3", None, 1, UUID, UUID),
        ("niah_multivalue", 4, 4, WORD, NUMBER),
        ("niah_multiquery", 4, 4, WORD, NUMBER),
    ],
)
def test_needles(made, name, needles, asked, key, value):
    for sample in made(f"ruler/{name}", 3000):
        found = [(match[2], match[3]) for match in NEEDLE.finditer(sample.input)]
        assert needles is None or len(found) == needles
        assert all(re.fullmatch(key, one) and re.fullmatch(value, other) for one, other in found)
        question = sample.input.rsplit("\n", 1)[1]
        queries = [one for one in dict.fromkeys(one for one, _ in found) if one in question]
        assert len(sample.outputs) == asked
        assert Counter(other for one, other in found if one in queries) == Counter(sample.outputs)
        assert len(queries) == (4 if name == "niah_multiquery" else 1)
        assert all(query in sample.answer_prefix for query in queries)
        assert sample.answer_prefix.endswith(" is" if asked == 1 else " are")
        begin, end = sample.place
        assert NEEDLE.fullmatch(sample.input[begin:end])[2] in queries
        if asked == 1:
            share = begin / len(sample.input)
            assert sample.depth == pytest.approx(share, abs=0.12)
            if "multikey_2" not in name and "multikey_3" not in name and name != "niah_single_1":
                assert sample.depth in _DEPTHS


def test_depths_are_rulers_forty():
    assert len(_DEPTHS) == 40 and _DEPTHS[:4] == (0, 0.03, 0.05, 0.08) and _DEPTHS[-2:] == (0.97, 1)


def test_noise_and_essays_are_all_that_is_around_needles(made, prose_path):
    (noisy,) = made("ruler/niah_single_1", 2000, 1)
    lines = noisy.input.split("\n")[1:-1]
    assert sum(line == OURS.noise for line in lines) == len(lines) - 1 > 20
    first, second = made("ruler/niah_single_2", 2000, 2)
    assert first.group == second.group != ""
    shared = min(first.place[0], second.place[0])
    assert first.input[: max(shared - 1, 0)] == second.input[: max(shared - 1, 0)]


def test_a_short_haystack_repeats_and_says_how_often(made, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("One sentence. Another sentence, and no more.")
    (sample,) = made("ruler/niah_single_2", 2000, 1, haystack=path)
    repeats = sample.extra["haystack_repeats"]
    assert sample.input.count("One sentence.") in (math.floor(repeats), math.ceil(repeats)) and repeats > 50


def test_variable_tracking(made):
    for sample in made("ruler/vt", 3000):
        example, text = sample.input.split(" are: ")[0], sample.input.split(OURS.vt.text[:30])[2]
        for part, letters in ((example, 3), (text, 5)):
            chain = re.findall(r"^VAR (\S+) = (?:VAR )?(\S+)$", part, re.MULTILINE)
            assert [one for one, _ in chain[:-1]] == [held for _, held in chain[1:]]
            assert len(chain) == 5 and all(len(one) == letters for one, _ in chain)
            assert re.fullmatch(r"\d{5}", chain[0][1])
        assert sample.outputs == tuple(one for one, _ in chain)
        assert f"value {chain[0][1]}" in sample.input.rsplit("\n", 1)[1]
        assert "the 5 variables" in sample.answer_prefix
        assert sample.input[slice(*sample.place)] == f"VAR {chain[0][0]} = {chain[0][1]}"


@pytest.mark.parametrize("length, often, seldom", [(7000, 30, 3), (2500, 6, 1)])
def test_common_words(made, length, often, seldom):
    for sample in made("ruler/cwe", length):
        example, text = sample.input.split(" are: ")[0], sample.input.split(OURS.cwe.text[:30])[2]
        for part, (most, least, others) in ((text, (often, seldom, None)),
                                            (example, (10, 3, 30) if length >= 4096 else (3, 1, 10))):  # fmt: skip
            listed = re.findall(r"(\d+)\. ([a-z]+)", part.partition("\nQuestion")[0])
            assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
            counts = Counter(word for _, word in listed)
            assert sorted(counts.values(), reverse=True)[:10] == [most] * 10
            assert set(sorted(counts.values())[:-10]) == {least}
            assert others is None or len(counts) == 10 + others
            if part is text:
                assert {word for word, count in counts.items() if count == most} == set(sample.outputs)


def test_a_long_list_of_common_words_takes_made_up_ones(made):
    (sample,) = made("ruler/cwe", 60_000, 1)
    assert sample.extra["words"] == "made up" and sample.extra["candidates"] > 1000
    (sample,) = made("ruler/cwe", 7000, 1)
    assert sample.extra["words"] == "ours"


def test_frequent_words_follow_zeta(made):
    for sample in made("ruler/fwe", 6000):
        text = sample.input.partition("occurs. ")[2].partition("\nQuestion")[0]
        counts = Counter(text.split(" ")).most_common()
        total = sample.extra["total"]
        expected = [int(total / rank**2 * 6 / math.pi**2) for rank in range(1, (6000 - 50) // 50 + 1)]
        assert [count for _, count in counts] == [count for count in expected if count]
        assert counts[0][0] == "..."
        assert tuple(word for word, _ in counts[1:4]) == sample.outputs


def test_a_length_at_which_words_do_not_tell_apart_is_refused(made):
    said = []
    for length in range(160, 400, 8):
        try:
            (sample,) = made("ruler/fwe", length, 1)
        except TooShortError as error:
            said.append(str(error))
        else:
            words = Counter(sample.input.partition("occurs. ")[2].partition("\nQuestion")[0].split(" "))
            counts = [count for word, count in words.most_common() if word != "..."]
            assert counts[0] > counts[1] > counts[2] > (counts[3] if len(counts) > 3 else 0)
    assert any("does not tell the three most frequent ones" in each for each in said)
    assert 5 < len(said) < 30


def documents(sample):
    context = sample.input.split("\n\n", 1)[1].rsplit("\n\nAnswer the question", 1)[0]
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", context)[1:]
    assert [int(number) for number in parts[::2]] == list(range(1, len(parts) // 2 + 1))
    return parts[1::2]


def test_squad(made):
    samples = made("ruler/qa_1", 1500, 4)
    for number, sample in enumerate(samples):
        found = documents(sample)
        assert len(found) == len(set(found)) == sample.extra["documents"] > 5
        assert sample.input.endswith(f"Question: What says {number}?")
        gold = [text for text in found if text.startswith(f"Paragraph {number} says ")]
        assert gold == [sample.input[slice(*sample.place)].split(":\n", 1)[1]]
        assert sample.outputs == tuple(gold[0].split()[3:5])
        near = {f"Paragraph {i} says" for i in range(number // 6 * 6, number // 6 * 6 + 6)}
        assert near <= {" ".join(text.split()[:3]) for text in found}
    assert {text.split()[1] for text in documents(samples[0])} != {text.split()[1] for text in documents(samples[3])}


def test_hotpot(made):
    for number, sample in enumerate(made("ruler/qa_2", 2500, 2)):
        found = documents(sample)
        gold = {f"Title {number * 7 + j}\nFact {number * 7 + j}. And it is {number}." for j in range(10)}
        assert gold <= set(found) and sample.outputs == (f"it is {number}",)


def test_documents_repeat_where_there_are_too_few(made):
    (sample,) = made("ruler/qa_1", 30_000, 1)
    counts = Counter(documents(sample))
    assert len(counts) == 60 and max(counts.values()) - min(counts.values()) <= 2
    assert sample.extra["haystack_repeats"] == pytest.approx(sum(counts.values()) / 60, abs=1e-3)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("ruler/qa_1", "[]", "no questions in squad's published format"),
        ("ruler/qa_1", '{"data": [{"paragraphs": [{"context": 1}]}]}', "no questions in squad's"),
        ("ruler/qa_2", '{"data": []}', "no questions in hotpotqa's"),
        ("ruler/qa_2", "[", "is not JSON"),
    ],
)
def test_data_in_another_format_are_refused(made, tmp_path, name, content, said):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        made(name, 2000, 1, data=path)


def test_more_questions_than_there_are_is_refused(made):
    with pytest.raises(UserError, match="holds 20 questions, and 21 are asked for"):
        made("ruler/qa_2", 3000, 21)


def test_places_between_lines():
    assert places_between([0.0, 0.5, 0.99], 10) == [0, 5, 9]
    assert places_between([0.99, 0.99, 0.99], 3) == [0, 1, 2]
    assert places_between([0.3], 0) == [0]
    text, places = insert_lines(["a", "bb", "c"], ["X", "YY"], [1, 3])
    assert text == "a\nX\nbb\nc\nYY" and [text[slice(*place)] for place in places] == ["X", "YY"]
