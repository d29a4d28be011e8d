"""The one-pass judgement against real generation."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer, Message
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf import LanguageModel
from megatron_ultralong.evaluation.benchmarks import scoring
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.retrieval import passkey_conversation, recall_conversation
from megatron_ultralong.evaluation.benchmarks.scoring import Prompt, exact_matches, scored_prompt
from tests.evaluation.conftest import save_model


def generate(folder: Path, ids: list[int], count: int) -> list[int]:
    """The slow twin: transformers' own greedy generation."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens)
    output = model.generate(
        tokens, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return output[0, len(ids) :].tolist()


def test_pieces_are_the_tokens_of_the_whole_chat(
    rng: random.Random, haystack: Haystack, tokenizer: ChatTokenizer
) -> None:
    for _ in range(20):
        messages = recall_conversation(
            rng, haystack, tokenizer, max_tokens=300, facts=3, filler_tokens=120, questions=3
        )
        prompt = scored_prompt(tokenizer, messages)
        whole = tokenizer.encode(tokenizer.render(messages))
        assert prompt.ids == whole[: len(prompt.ids)]
        assert tokenizer.encode(".<|eot_id|>") == whole[len(prompt.ids) :]
        digits = [tokenizer.encode(message["content"][-6:-1]) for message in messages[1::2]]
        assert [prompt.ids[first:last] for first, last in prompt.answers] == digits
        assert prompt.answers[0][0] == len(
            tokenizer.encode(tokenizer.render(messages[:1], generation_prompt=True) + messages[1]["content"][:-6])
        )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_match_is_greedy_generation(
    seed: int, tmp_path: Path, tokenizer_folder: Path, tokenizer: ChatTokenizer, haystack: Haystack
) -> None:
    """Half of the answers are what the model generates, half of them are that with one token changed."""
    from megatron_ultralong.evaluation.backends.hf import read_info

    folder = save_model(tmp_path / "model", tokenizer_folder, seed)
    model = LanguageModel(read_info(folder))
    rng = random.Random(seed)
    prompts, expected = [], []
    for number in range(10):
        messages = passkey_conversation(rng, haystack, tokenizer, length=rng.randrange(60, 150), depth=0.5)
        asked = scored_prompt(tokenizer, messages)
        start = asked.answers[0][0]
        digits = generate(folder, asked.ids[:start], 5)
        if number % 2:
            place = rng.randrange(5)
            digits[place] = (digits[place] + 1) % 512
        prompts.append(Prompt(asked.ids[:start] + digits, ((start, start + 5),)))
        expected.append([number % 2 == 0])
    assert exact_matches(model, prompts, "test") == expected
    assert exact_matches(model, [scored_prompt(tokenizer, messages)], "test") == [[False]]


def test_every_answer_of_a_chat_is_judged_by_itself(model: LanguageModel, model_folder: Path) -> None:
    ids = list(range(20, 40))
    right = generate(model_folder, ids, 2)
    later = [*ids, *right, 7, 8, 9]
    prompt = Prompt([*later, *generate(model_folder, later, 1)], ((10, 12), (20, 22), (25, 26)))
    assert exact_matches(model, [prompt], "test") == [[False, True, True]]


def test_batches_do_not_change_the_judgement(
    model: LanguageModel, haystack: Haystack, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    prompts = []
    for _ in range(12):
        messages = passkey_conversation(rng, haystack, tokenizer, length=rng.randrange(60, 150), depth=0.2)
        prompts.append(scored_prompt(tokenizer, messages))
    hidden = [model.hidden(torch.tensor([prompt.ids]))[0, -1] for prompt in prompts]
    guesses = [int(model.logits(row[None]).argmax()) for row in hidden]
    prompts = [Prompt([*p.ids, g], ((len(p.ids), len(p.ids) + 1),)) for p, g in zip(prompts, guesses, strict=True)]
    prompts[4] = Prompt([*prompts[4].ids[:-1], (prompts[4].ids[-1] + 1) % 512], prompts[4].answers)
    expected = [[number != 4] for number in range(12)]
    for tokens in (1, 400, 100_000):
        monkeypatch.setattr(scoring, "BATCH_TOKENS", tokens)
        assert exact_matches(model, prompts, "test") == expected


def test_batches_are_padded_to_the_limit_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 20)
    assert list(scoring._batches([10, 9, 30, 10, 2])) == [[4, 1], [0, 3], [2]]


class Shouting:
    """A chat template that changes the messages."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def render(self, messages: list[Message], *, generation_prompt: bool = False) -> str:
        return "\n".join(message["content"].upper() for message in messages)


def test_a_template_that_rewrites_messages_is_refused(haystack: Haystack, tokenizer: ChatTokenizer) -> None:
    messages = passkey_conversation(random.Random(0), haystack, tokenizer, length=100, depth=0.0)
    with pytest.raises(UserError, match="the chat template rewrites the message"):
        scored_prompt(Shouting(), messages)
