"""End tokens by the file that states them, and texts to stop at that tokens may straddle."""

import json

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.answer_stops import StopFinder
from megatron_ultralong.evaluation.backends.end_tokens import end_tokens

PIECES = ["", "ye", "s\n", "\nUs", "er:", "x", "<eos>"]


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
    answer = StopFinder(lambda some: "".join(PIECES[i] for i in some), {6}, stop)
    assert [answer.add(token) for token in ids] == [False] * (len(ids) - 1) + [ends]
    assert (answer.finished, answer.text(), answer.ids) == (ends, text, ids)


@pytest.mark.parametrize(
    "generation, config, tokens",
    [
        ({"eos_token_id": [5, 7]}, {"eos_token_id": 2}, {2, 5, 7}),
        ({"eos_token_id": 5}, {}, {5}),
        ({}, {"eos_token_id": 2}, {2}),
        (None, {"eos_token_id": [2, 3]}, {2, 3}),
        (None, {"eos_token_id": None}, {99}),
        ({"eos_token_id": 0}, {}, {0}),
    ],
)
def test_end_tokens(tmp_path, generation, config, tokens):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_tokens(tmp_path, config, 99) == tokens


def test_a_model_without_any_end_token(tmp_path):
    assert end_tokens(tmp_path, {}, None) == frozenset()


def test_an_end_token_that_is_none(tmp_path):
    with pytest.raises(UserError, match="eos_token_id is '</s>'"):
        end_tokens(tmp_path, {"eos_token_id": "</s>"}, 99)
