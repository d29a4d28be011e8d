import json
import random

import numpy as np
import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.counting import counter_of
from megatron_ultralong.evaluation.benchmarks.filler import _WORD, _filler, filler_of, normalised

ODD = [
    "Plain words. More of them!  Two spaces? Yes.\n\n\tIndented line\nlast line without an end",
    "",
    "  \n ",
    "中文没有空格。第二句！第三句？" + "漢" * 50,
    "x" * 200 + " " + "y" * 64 + "\n" + "z" * 65,
    'He said "Stop." Then (see 3.) he left.\r\nWindows line\u2028separator',
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    rows = [json.dumps({"text": text}) for text in [*ODD, texts[0][:3000]]]
    path.write_text("\n".join(rows))
    return path


def whole(shape):
    """The corpus by hand."""
    return (" " if shape == "prose" else "\n").join(clean for text in ODD if (clean := normalised(text, shape)))


def test_normalised():
    assert normalised(" a  b\n\tc ", "prose") == "a b c"
    assert normalised("a  \n\n  b\t\n", "lines") == "a\n  b"


@pytest.mark.parametrize("shape", ["prose", "lines"])
def test_words_make_up_the_text(shape):
    for text in [*ODD, whole(shape)]:
        clean = normalised(text, shape)
        assert "".join(_WORD.findall(clean)) == clean
        assert all(len(word.strip(" \n")) <= 64 for word in _WORD.findall(clean))


@pytest.mark.parametrize("shape", ["prose", "lines"])
def test_stretches_are_slices_of_the_text_repeated(corpus, tokenizer, shape):
    filler = filler_of(corpus, tokenizer, shape, 10**6, None)
    assert filler.text.startswith(whole(shape))
    again = (filler.text + filler.join) * 4
    rng = random.Random(1)
    for _ in range(200):
        start, count = rng.randrange(filler.words), rng.randrange(1, 3 * filler.words)
        stretch = filler.from_word(start)
        begin = filler.offset(start)
        assert stretch.take(count) == again[begin : filler.offset(start + count)].rstrip()
        planned = stretch.planned(count)
        assert stretch.units(planned) >= count and stretch.planned(stretch.units(planned)) == planned
        assert stretch.repeats(count) == max(round(count / filler.words, 4), 1)


def test_planned_tokens_are_nearly_those_of_the_text(corpus, tokenizer):
    for shape in ("prose", "lines"):
        stretch = filler_of(corpus, tokenizer, shape, 10**6, None).from_word(0)
        for count in (10, 100, 400):
            counted = counter_of(tokenizer).count(stretch.take(count))
            assert counted == pytest.approx(stretch.planned(count), rel=0.08, abs=4)


@pytest.mark.parametrize("shape", ["prose", "lines"])
def test_breaks_are_where_sentences_or_lines_begin(corpus, tokenizer, shape):
    filler = filler_of(corpus, tokenizer, shape, 10**6, None)
    text = filler.from_word(0).take(2 * filler.words)
    breaks = filler.from_word(0).breaks(len(text)).tolist()
    assert breaks[0] == 0 and breaks[-1] == len(text) and breaks == sorted(breaks)
    starts = {text[place:].split(" ")[0] for place in breaks[:-1]}
    assert {"Plain", "More", "Yes.", "Then"} <= starts or shape == "lines"
    assert all(text[place - 1] in " \n。！？" or text[place - 1 :].startswith(filler.join) for place in breaks[1:-1])
    assert any(text[place:].startswith("第二句") for place in breaks)


def test_a_break_near_a_depth_is_the_nearest_by_tokens(corpus, tokenizer):
    filler = filler_of(corpus, tokenizer, "lines", 10**6, None)
    for start in (0, 37):
        stretch = filler.from_word(start)
        text = stretch.take(300)
        shares = [stretch._before(int(place)) / stretch._before(len(text)) for place in stretch.breaks(len(text))]
        for depth in np.linspace(0, 1, 23):
            place, reached = stretch.break_near(len(text), depth)
            assert place in stretch.breaks(len(text))
            assert abs(reached - depth) == min(abs(share - depth) for share in shares)


def test_the_folder_keeps_what_memory_would_hold(corpus, tokenizer, tmp_path):
    fresh = filler_of(corpus, tokenizer, "lines", 500, None)
    for _ in range(2):  # written, then read
        _filler.cache_clear()
        kept = filler_of(corpus, tokenizer, "lines", 500, tmp_path)
        assert kept.text == fresh.text and kept.tokens == fresh.tokens
        assert np.array_equal(kept.breaks(0, len(kept.text)), fresh.breaks(0, len(fresh.text)))
    assert len(list(tmp_path.iterdir())) == 1


def test_only_what_is_needed_is_read(tmp_path, tokenizer):
    path = tmp_path / "endless.jsonl"
    row = json.dumps({"text": "A short line of words. " * 40})
    path.write_text("\n".join([row] * 200))
    filler = filler_of(path, tokenizer, "prose", 1000, None)
    assert 1000 <= filler.tokens < 4 * 1000


def test_nothing_but_white_space_is_refused(tmp_path, tokenizer):
    path = tmp_path / "blank.jsonl"
    path.write_text(json.dumps({"text": " \n "}))
    with pytest.raises(UserError, match="there is no text in it"):
        filler_of(path, tokenizer, "prose", 1000, None)
