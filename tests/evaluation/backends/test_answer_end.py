"""End tokens by the file that states them, and texts to stop at that tokens may straddle."""

import json

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.megatron.answer_end import AnswerEnd, end_tokens

PIECES = ["", "ye", "s\n", "\nUs", "er:", "x", "<eos>"]
END = AnswerEnd(frozenset([6]), lambda ids: "".join(PIECES[i] for i in ids))


@pytest.mark.parametrize(
    "ids, stop, ends, text",
    [
        ([1, 2], (), False, "yes\n"),
        ([1, 2, 6], (), True, "yes\n"),
        ([1, 2], ("\n",), True, "yes"),
        ([1, 2, 3, 4], ("\n\nUser:",), True, "yes"),  # over three tokens
        ([1, 2, 3], ("\n\nUser:",), False, "yes\n\nUs"),
        ([6], ("x",), True, ""),
        ([1, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 1], ("es", "eyx"), False, "ye" + 17 * "x" + "ye"),
    ],
)
def test_answers_end(ids, stop, ends, text):
    assert END.reached(ids, stop) is ends
    assert END.text(ids, stop) == text


def test_an_answer_of_no_tokens():
    assert END.text([], ("x",)) == ""


@pytest.mark.parametrize(
    "generation, config, tokens",
    [
        ({"eos_token_id": [5, 7]}, {"eos_token_id": 2}, {5, 7}),
        ({"eos_token_id": 5}, {}, {5}),
        ({}, {"eos_token_id": 2}, {2}),
        (None, {"eos_token_id": [2, 3]}, {2, 3}),
        (None, {"eos_token_id": None}, {99}),
    ],
)
def test_end_tokens(tmp_path, generation, config, tokens):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_tokens(tmp_path, config, lambda: 99) == tokens


def test_an_end_token_that_is_none(tmp_path):
    with pytest.raises(UserError, match="eos_token_id is '</s>'"):
        end_tokens(tmp_path, {"eos_token_id": "</s>"}, lambda: 99)
