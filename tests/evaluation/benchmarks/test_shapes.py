"""Prompts of the retrieval tasks on every shape of tokenizer: encoded whole, filled, judged on the answers' tokens."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.retrieval import count_tokens, passkey_conversation, recall_conversation
from megatron_ultralong.evaluation.benchmarks.scoring import exact_matches, scored_prompt
from tests.data.tokenizer.shapes import build
from tests.data.tokenizer.templates import with_template
from tests.data.tokenizer.test_chat_matrix import SHAPES


class Copier:
    """A perfect model: it predicts the token that comes next, but for those at `wrong`."""

    device = torch.device("cpu")

    def __init__(self, vocab_size: int, wrong: frozenset[int] = frozenset()) -> None:
        self.vocab_size, self.wrong = vocab_size, wrong

    def hidden(self, tokens_bs: torch.Tensor) -> torch.Tensor:
        following = tokens_bs.roll(-1, 1)
        for place in self.wrong:
            following[:, place - 1] = (following[:, place - 1] + 1) % self.vocab_size
        return following[..., None].double()

    def logits(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(hidden_nd[:, 0].long(), self.vocab_size).double()


def check(tokenizer: ChatTokenizer, messages: list[dict[str, str]]) -> list[str]:
    """Hold a prompt against the whole chat and the copier; returns what the judged tokens spell."""
    prompt = scored_prompt(tokenizer, messages)
    hf = tokenizer.template._hf
    whole = hf.apply_chat_template(messages, return_dict=False)
    assert prompt.ids == whole[: len(prompt.ids)]
    model = Copier(tokenizer.vocab_size)
    assert exact_matches(model, [prompt], "test") == [[True] * len(prompt.answers)]
    for number, (first, last) in enumerate(prompt.answers):
        for place in {first, last - 1}:
            wrong = Copier(tokenizer.vocab_size, frozenset({place}))
            assert exact_matches(wrong, [prompt], "test") == [[i != number for i in range(len(prompt.answers))]]
    spelt = ["".join(hf.convert_ids_to_tokens(prompt.ids[first:last])) for first, last in prompt.answers]
    return [re.sub("<0x(..)>", lambda byte: chr(int(byte[1], 16)), text) for text in spelt]


@pytest.mark.parametrize("name", ["chatml", "llama-2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_model_scores_one_and_only_answers_are_judged(
    shape: str, name: str, tmp_path: Path, texts: list[str]
) -> None:
    tokenizer = ChatTokenizer(with_template(build(shape, tmp_path / "shape"), name))
    haystack, rng = Haystack(texts, tokenizer), random.Random(shape)
    for _ in range(5):
        messages = recall_conversation(
            rng, haystack, tokenizer, max_tokens=700, facts=3, filler_tokens=300, questions=3
        )
        digits = [message["content"][-6:-1] for message in messages[1::2]]
        assert [text.strip("\u2581\u0120.") for text in check(tokenizer, messages)] == digits
    for length in (500, 2000):
        for depth in (0.0, 0.4, 1.0):
            messages = passkey_conversation(rng, haystack, tokenizer, length=length, depth=depth)
            assert length - 20 <= count_tokens(tokenizer, messages) <= length
            check(tokenizer, messages)


def test_a_token_across_the_border_is_judged_whole(tmp_path: Path, texts: list[str]) -> None:
    folder = with_template(build("mistral-first", tmp_path / "shape"), "llama-2")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    vocab, new = whole["model"]["vocab"], max(entry["id"] for entry in whole["added_tokens"]) + 1
    for digit in "0123456789":
        for piece in (digit, f"\u2581{digit}", f"{digit}."):
            vocab.setdefault(piece, new + len(vocab))
        whole["model"]["merges"] += [["\u2581", digit], [digit, "."]]
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    tokenizer = ChatTokenizer(folder)
    messages = passkey_conversation(random.Random(0), Haystack(texts, tokenizer), tokenizer, length=300, depth=0.5)
    (judged,) = check(tokenizer, messages)
    assert judged == f"\u2581{messages[1]['content'][-6:]}"


def test_digits_that_the_tokenizer_drops(tmp_path: Path) -> None:
    folder = with_template(build("llama3", tmp_path / "shape"), "chatml")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": ""}
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "The red key is 12345."}]
    with pytest.raises(UserError, match="the tokenizer drops '12345' from "):
        scored_prompt(ChatTokenizer(folder), messages)


@pytest.mark.parametrize("shape", ["llama3", "llama2-prepend", "mistral-always", "unigram"])
def test_a_long_text_is_encoded_a_few_times(
    shape: str, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ChatTokenizer(with_template(build(shape, tmp_path / "shape"), "chatml"))
    haystack = Haystack(texts, tokenizer)
    sizes: list[int] = []
    plain = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: sizes.append(len(text)) or plain(text))
    for seed in range(3):
        messages = passkey_conversation(random.Random(seed), haystack, tokenizer, length=20_000, depth=0.5)
        assert 20_000 - 20 <= len(plain(tokenizer.render(messages))) <= 20_000
    whole = [size for size in sizes if size > 10_000]
    assert len(whole) <= 3 * 4
