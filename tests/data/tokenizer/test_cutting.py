"""Pieces of texts that come whole or in blocks, and what finding them costs."""

import random
import re
import tracemalloc

import pytest

from megatron_ultralong.data.tokenizer import cutting
from megatron_ultralong.data.tokenizer.cutting import Cuts
from tests.data.tokenizer.scripts import SCRIPTS

SPACE = Cuts(re.compile(r" (?<=\S )"))
DROPPED = Cuts(re.compile(r" (?<=\S )(?=\S)"), dropped=1)
WORDS = (
    "\u0432\u0441\u0435 \u0441\u0447\u0430\u0441\u0442\u043b\u0438\u0432\u044b\u0435 \u0441\u0435\u043c\u044c\u0438 "
)


class Counting:
    """A pattern that counts the characters it is given."""

    def __init__(self, pattern):
        self.pattern, self.seen = pattern, 0

    def finditer(self, text, start=0, end=None):
        end = len(text) if end is None else min(end, len(text))
        self.seen += end - start
        return self.pattern.finditer(text, start, end)


def blocks_of(data, size, seed=None):
    """The bytes in blocks of `size`, or of up to twice that at random."""
    draw, start = random.Random(seed), 0
    while start < len(data):
        step = size if seed is None else draw.randrange(2 * size)
        yield data[start : start + step]
        start += step


@pytest.mark.parametrize("cuts", [SPACE, DROPPED, Cuts(SPACE.pattern, (("\u0435", " \u0441\u0447"), ("\u0438", "")))])
@pytest.mark.parametrize("size", [1, 7, 300])
def test_blocks_give_pieces_as_a_whole_text_does(cuts, size):
    """Whatever the blocks, also where a character or a token lies in two; only near its end a text may stay whole."""
    text = WORDS * 20 + "".join(SCRIPTS.values()) + "x"
    whole = [piece.encode() for piece in cuts.pieces(text, 1)]
    assert list(cuts.pieces(text.encode(), 1)) == whole
    for seed in range(20):
        pieces = list(cuts.stream(blocks_of(text.encode(), size, seed), 1))
        assert pieces[:-1] == whole[: len(pieces) - 1] and len(pieces[-1]) < 50
        between = b" " * cuts.dropped
        assert between.join(pieces).decode() == text
        long = list(cuts.stream(blocks_of(text.encode(), size, seed), 100))
        assert (
            long[:-1] == list(cuts.pieces(text.encode(), 100))[: len(long) - 1] and between.join(long).decode() == text
        )


def test_pieces_are_not_shorter_than_asked_for():
    assert list(SPACE.pieces("ab c defg h", 4)) == ["ab c", " defg", " h"]
    assert list(SPACE.stream([b"ab c defg h" + b"." * 40], 4)) == [b"ab c", b" defg", b" h" + b"." * 40]
    assert list(SPACE.stream([b"a ", b"", b"b"])) == [b"a b"] and list(SPACE.stream([])) == [b""]


@pytest.mark.parametrize(
    ("text", "barred"),
    [
        ("\u0435" * 50_000, ()),
        (WORDS * 2500, ()),
        (WORDS * 2500, (("", " "),)),
        ("\u65e5" * 30_000, ()),
        ("a" * 99_999, ()),
    ],
)
@pytest.mark.parametrize("block", [1000, 20_000])
def test_every_byte_is_looked_at_once(text, barred, block):
    """With a place everywhere, nowhere, or only places that added tokens forbid."""
    for data in (text.encode(), text.encode() * 4):
        counting = Counting(SPACE.pattern)
        pieces = list(Cuts(counting, barred).stream(blocks_of(data, block), 20_000))
        assert b"".join(pieces) == data
        assert counting.seen <= 1.1 * len(data.decode()) + len(pieces) * cutting._WINDOW


def test_a_text_is_held_as_far_as_its_next_place():
    def peak(unit, count):
        tracemalloc.start()
        total = sum(map(len, SPACE.stream((unit for _ in range(count)), 100_000)))
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == len(unit) * count
        return largest

    words, stretch = (WORDS * 300).encode(), b"x" * 30_000
    assert peak(words, 400) < 1_000_000  # of 12 MB
    assert peak(stretch, 400) < 1.25 * 12_000_000  # once, and the eighth by which a buffer grows ahead
