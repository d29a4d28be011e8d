"""The cut by tokens: which stay, the text's own characters, never over the length."""

import dataclasses
import random

import numpy as np
import pytest

from megatron_ultralong.evaluation.benchmarks.counting import Counter, counter_of
from megatron_ultralong.evaluation.benchmarks.middle_cut import cut_middle, fitted
from megatron_ultralong.evaluation.samples import Sample, TooShortError
from tests.evaluation.benchmarks import official
from tests.evaluation.benchmarks.published import CHINESE, PASSAGE


def spans_of(tokens: int) -> np.ndarray:
    """Tokens of one character each."""
    return np.stack([np.arange(tokens), np.arange(tokens) + 1], axis=1)


@pytest.mark.parametrize(
    ("budget", "before", "even", "left", "removed"),
    [
        # InfiniteBench, src/eval_utils.py:400-406 at 88b3daa; LongBench, pred.py:26 at 2e00731: [:n//2] + [-n//2:]
        (10, 0, False, "0123456789", 0),
        (11, 0, False, "0123456789", 0),
        (9, 0, False, "012356789", 1),  # an odd budget: one more at the end
        (8, 0, False, "01236789", 2),
        (3, 0, False, "089", 7),
        (2, 0, False, "09", 8),
        (1, 0, False, "9", 9),
        # LV-Eval, utils.py:107-116 at 63e7ae9: [:n//2] + [-(n//2):]
        (9, 0, True, "01236789", 2),
        (3, 0, True, "09", 8),
        # a token that the tokenizer puts before the text is the first of the first half
        (11, 1, False, "0123456789", 0),
        (10, 1, False, "012356789", 1),
        (9, 1, False, "01256789", 2),
        (2, 1, False, "9", 9),
    ],
)
def test_which_tokens_stay(budget, before, even, left, removed):
    assert cut_middle("0123456789", spans_of(10), budget, before, even) == (left, removed)


def test_a_character_that_the_cut_falls_into_is_left_out():
    spans = np.array([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]])  # the second of three characters has three tokens
    assert cut_middle("aΩb", spans, 4) == ("ab", 1)
    assert cut_middle("aΩb", spans, 5) == ("aΩb", 0)


@pytest.mark.parametrize("even", [False, True])
def test_it_is_what_decoding_the_halves_gives(tokenizer, even):
    rng = random.Random(3)
    pieces = [*PASSAGE.split(" "), *CHINESE, "\n\n", "  ", "Ω", "🙂", "12,345"]
    for _ in range(60):
        text = " ".join(rng.choice(pieces) for _ in range(rng.randint(5, 60)))
        ids, spans = tokenizer.encode(text), tokenizer.offsets(text)
        assert len(ids) == len(spans)
        budget = rng.randint(2, len(ids))
        tail = budget // 2 if even else budget - budget // 2
        whole = tokenizer.decode(ids[: budget // 2]) + tokenizer.decode(ids[len(ids) - tail :])
        expected = text if len(ids) <= budget else whole.replace("\ufffd", "")
        assert cut_middle(text, spans, budget, 0, even)[0] == expected


def a_sample(text: str, length: int, form: str = "base") -> Sample:
    return Sample(
        task="t", index=0, input=text, outputs=("x",), length=length, max_new_tokens=20, prompt_tokens=0, form=form
    )


@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize("reserve", [0, 30])
def test_prompt_and_budget_fill_the_length_and_never_pass_it(tokenizer, form, reserve):
    rng = random.Random(5)
    for _ in range(25):
        text = " ".join(rng.choice([*PASSAGE.split(" "), *CHINESE, "🙂"]) for _ in range(300))
        length = rng.randint(150, 400)
        sample = fitted(a_sample(text, length, form), a_sample("", length, form), counter_of(tokenizer), reserve)
        assert sample.prompt_tokens == counter_of(tokenizer).prompt(sample)
        limit = min(length - 20, length - reserve + (counter_of(tokenizer).prompt(a_sample("", length, form))))
        # on each side of the cut up to three bytes of an emoji, each a token, are left out
        assert limit - 6 <= sample.prompt_tokens <= length - 20
        assert sample.extra["cut_tokens"] > 0
        assert text.startswith(sample.input[:20]) and text.endswith(sample.input[-20:])


def test_what_fits_stays_as_it_is(tokenizer):
    sample = fitted(a_sample(PASSAGE, 4000), a_sample("", 4000), counter_of(tokenizer))
    assert sample.input == PASSAGE and "cut_tokens" not in sample.extra
    assert sample.prompt_tokens == len(tokenizer.encode(PASSAGE))


@pytest.mark.parametrize("length", [0, 20, 21])
def test_a_budget_that_eats_the_prompt_is_said(tokenizer, length):
    with pytest.raises(TooShortError, match=f"a length of {length} tokens is too short.*ask for more than"):
        fitted(a_sample(PASSAGE, length), a_sample("What?", length), counter_of(tokenizer))


def test_lengths_of_the_benchmarks_own_code(tokenizer_folder, tokenizer):
    """Their truncation of ids and decoding beside ours, with a tokenizer that puts a token before texts."""
    from transformers import AutoTokenizer

    theirs = official.definitions(
        official.clone("INFINITEBENCH") / "src" / "eval_utils.py",
        **dict.fromkeys(("MODEL_TO_PROMPT_TEMPLATE", "DATA_NAME_TO_PATH", "DATA_NAME_TO_MAX_NEW_TOKENS")),
    )["truncate_input"]
    prompt = official.definitions(official.clone("LVEVAL") / "utils.py")["truncate_prompt"]
    plain = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
    text = PASSAGE * 20
    spans = tokenizer.offsets(text)
    for budget in (50, 51, 333):
        ids = theirs(plain.encode(text, add_special_tokens=False), budget)
        assert cut_middle(text, spans, budget)[0] == plain.decode(ids)
        assert cut_middle(text, spans, budget, even=True)[0] == prompt(plain, text, budget)


def test_the_token_before_the_text_counts(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "start_ids", property(lambda _: (0,)))
    text = PASSAGE * 20
    sample = fitted(a_sample(text, 120), a_sample("", 120), Counter(tokenizer, False))
    assert sample.prompt_tokens == 100
    spans = tokenizer.offsets(text)
    assert sample.input == text[: spans[48, 1]] + text[spans[len(spans) - 50, 0] :]
    assert dataclasses.replace(sample).extra["cut_tokens"] == len(spans) - 99
