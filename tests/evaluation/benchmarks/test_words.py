import re

from megatron_ultralong.evaluation.benchmarks.words import ADJECTIVES, COMMON, MADE_UP, NOUNS, MadeUp, made_up


def test_the_lists_hold_plain_words_once():
    assert len(ADJECTIVES) > 200 and len(NOUNS) > 400
    assert len(COMMON) == len(set(COMMON)) == len({*ADJECTIVES, *NOUNS})
    assert all(re.fullmatch("[a-z]{3,}", word) for word in COMMON)


def test_made_up_words_are_all_different():
    words = MadeUp()
    assert len(words) == MADE_UP == 2_401_000
    some = words[::11]
    assert len(set(some)) == len(some) > 200_000
    assert words[0] == made_up(0) == "bababa" and words[-1] == "zuzuzut"
