import random

import pytest

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.haystack import LONGEST_LINE, Haystack


class Bytes:
    """One token a byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def test_lines_are_consecutive_and_counted_with_their_newline() -> None:
    haystack = Haystack(["one\n\n  two  \n", "three"], Bytes())
    assert len(haystack) == 3
    assert [haystack.count(line) for line in ("one", "  two", "three")] == [4, 6, 6]
    orders = {tuple(haystack.take(random.Random(seed), 16)) for seed in range(20)}
    assert orders == {("one", "  two", "three"), ("  two", "three", "one"), ("three", "one", "  two")}


def test_a_line_that_does_not_fit_is_passed_over() -> None:
    haystack = Haystack(["longer line\nab"], Bytes())
    assert {tuple(haystack.take(random.Random(seed), 10)) for seed in range(9)} == {("ab", "ab", "ab")}


def test_long_lines_are_left_out() -> None:
    haystack = Haystack(["x" * LONGEST_LINE + "\nshort"], Bytes())
    assert set(haystack.take(random.Random(0), 1000)) == {"short"}


@pytest.mark.parametrize("tokens", [0, 1, 7, 40, 1000, 5000])
def test_sums_come_near_and_never_pass(
    haystack: Haystack, tokenizer: ChatTokenizer, rng: random.Random, tokens: int
) -> None:
    for _ in range(20):
        lines = haystack.take(rng, tokens)
        counted = sum(map(haystack.count, lines))
        assert tokens - 6 <= counted <= tokens
        assert counted == len(tokenizer.encode("".join(line + "\n" for line in lines)))


@pytest.mark.parametrize("texts", [[], ["\n \n"], ["x" * 200]])
def test_a_haystack_without_usable_lines(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"hold no line of at most 64 tokens"):
        Haystack(texts, Bytes())
