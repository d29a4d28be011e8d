"""Exact match of greedy answers in one forward pass.

Greedy generation gives an answer if and only if at every one of its positions the argmax, with the answer so
far fed in, is the answer's next token: so nothing is generated, and logits are computed for these positions
alone. What is judged are the key's digits, given the chat up to and with the answer's lead-in ("The red key
is "): the wording of an answer is learnt in a few steps and says nothing about retrieval.

Legend: B batch, S sequence, D hidden, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer, Message
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf import LanguageModel
from megatron_ultralong.evaluation.benchmarks.retrieval import DIGITS
from megatron_ultralong.progress import Progress

BATCH_TOKENS = 8_192
"""Tokens of one forward pass, padding included, unless a single prompt is longer."""

_LOGIT_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids up to the end of the last judged answer, and where the judged tokens are."""

    ids: list[int]
    answers: tuple[tuple[int, int], ...]
    """Half-open ranges into `ids`, one an answer, in order."""


def scored_prompt(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> Prompt:
    """Tokenize a chat whose assistant turns end in a key's digits and a full stop.

    The whole chat is encoded once, as a model that answers it sees it. Judged are the tokens that hold any of the
    digits: one that also holds what stands beside them ("▁482" with the space before) is judged whole, given only
    what comes before it.

    Raises:
        UserError: the chat template rewrites the messages, or the tokenizer drops digits.
    """
    text = tokenizer.render(messages)
    digits = []
    cursor = 0
    for message in messages:
        place = text.find(message["content"], cursor)
        if place < 0:
            raise UserError(
                f"the chat template rewrites the message {message['content'][-60:]!r}; "
                "use one that keeps the messages' text."
            )
        cursor = place + len(message["content"])
        if message["role"] == "assistant":
            digits.append((cursor - 1 - DIGITS, cursor - 1))
    ids, answers = tokenizer.locate(text, digits)
    return Prompt(ids[: answers[-1][1]], tuple(answers))


def exact_matches(model: LanguageModel, prompts: Sequence[Prompt], description: str) -> list[list[bool]]:
    """Judge every answer of every prompt, showing progress in tokens.

    Args:
        model: the model asked.
        prompts: of any lengths; prompts of like length share a forward pass.
        description: what the progress line says.

    Returns:
        For each prompt, in the given order, whether each of its answers is the greedy one.
    """
    results: list[list[bool]] = [[] for _ in prompts]
    with Progress(description, sum(len(prompt.ids) for prompt in prompts), "tokens") as progress:
        for batch in _batches([len(prompt.ids) for prompt in prompts]):
            for index, right in zip(batch, _judge(model, [prompts[index] for index in batch]), strict=True):
                results[index] = right
            progress.advance(sum(len(prompts[index].ids) for index in batch))
    return results


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indexes by ascending length, as many together as BATCH_TOKENS allows when padded to the longest."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _judge(model: LanguageModel, prompts: Sequence[Prompt]) -> list[list[bool]]:
    """One forward pass over prompts padded on the right."""
    longest = max(len(prompt.ids) for prompt in prompts)
    tokens_BS = torch.tensor([prompt.ids + [0] * (longest - len(prompt.ids)) for prompt in prompts])
    places = [
        (row, position)
        for row, prompt in enumerate(prompts)
        for first, last in prompt.answers
        for position in range(first, last)
    ]
    rows, positions = (torch.tensor(column) for column in zip(*places, strict=True))
    hidden_nD = model.hidden(tokens_BS)[rows.to(model.device), positions.to(model.device) - 1]
    guesses = torch.cat([model.logits(chunk).argmax(-1) for chunk in hidden_nD.split(_LOGIT_ROWS)])
    right = iter((guesses.cpu() == tokens_BS[rows, positions]).tolist())
    return [[all([next(right) for _ in range(first, last)]) for first, last in prompt.answers] for prompt in prompts]
