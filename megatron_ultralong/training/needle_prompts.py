"""Needles for validation: keys hidden in held-out tokens, with the question and the right answer behind them.

Evaluation's own prompts are texts of any haystack, fitted to a length by counting tokens; here the haystack is tokens
that a validation source holds already, into which a key's line is put as tokens: nothing is fitted, and a prompt of
4M tokens costs what reading them does. The wording is the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from megatron_ultralong.config.sections import RunConfig, ValidationConfig
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks import keys
from megatron_ultralong.training.sources import together

if TYPE_CHECKING:
    from megatron_ultralong.data.tokenizer.chat import ChatTokenizer

Ids = npt.NDArray[np.int64]
_TEXT = "HAYSTACK"  # stands for the text while a chat is rendered
_LEAST_TEXT = 16


@dataclasses.dataclass(frozen=True)
class NeedlePrompt:
    """A prompt but for its text.

    Attributes:
        length: tokens in all, the answer's included.
        depth: of the key in the text, 0 to 1.
        before: ids before the text.
        needle: of the key's line.
        asked: behind the text, up to the answer.
        answer: of the digits, and of a blank before them where that is a token of its own.
    """

    length: int
    depth: float
    before: Sequence[int]
    needle: Sequence[int]
    asked: Sequence[int]
    answer: Sequence[int]

    @property
    def room(self) -> int:
        """Tokens of text that fit."""
        return self.length - sum(map(len, (self.before, self.needle, self.asked, self.answer)))

    def ids(self, text: Ids) -> Ids:
        """int64 [length]: all of it, with `room` tokens of text."""
        cut = round(self.depth * len(text))
        return np.concatenate([self.before, text[:cut], self.needle, text[cut:], self.asked, self.answer]).astype(
            np.int64
        )


def prepare_needles(config: RunConfig) -> list[NeedlePrompt]:
    """The prompts of a run's validation, by length; rank 0 alone loads the tokenizer, and every rank calls this.

    Raises:
        UserError: on every rank: the tokenizer cannot be loaded, lacks a chat template, or a length is too short.
    """
    section = config.validation
    if not section.needles:
        return []
    from megatron_ultralong.data.tokenizer.chat import ChatTokenizer

    first = dist.get_rank() == 0
    made = [together(lambda: _made(section, ChatTokenizer(config.model.hf, chat=False)) if first else [])]
    dist.broadcast_object_list(made)
    return made[0]


def _made(section: ValidationConfig, tokenizer: ChatTokenizer) -> list[NeedlePrompt]:
    prompts = []
    depths = keys.depth_grid(section.needle_depths)
    for length, depth, number in itertools.product(section.needles, depths, range(section.needle_keys)):
        ((name, digits),) = keys.random_facts(random.Random(f"validation {length} {depth} {number}"), 1)
        before, behind = _around(section, tokenizer, name)
        lead_in = keys.lead_in(name)
        whole = tokenizer.encode(f"{behind}{lead_in}{digits}")
        shared = _common(tokenizer.encode(f"{behind}{lead_in}".rstrip()), whole)
        needle = tokenizer.encode(f"\n{keys.fact(name, digits)}\n")
        prompt = NeedlePrompt(length, depth, before, needle, whole[:shared], whole[shared:])
        if prompt.room < _LEAST_TEXT:
            raise UserError(
                f"validation.needles: length {length} is too short: key, question and answer take "
                f"{length - prompt.room} tokens; give {length - prompt.room + _LEAST_TEXT} or more."
            )
        prompts.append(prompt)
    return prompts


def _around(section: ValidationConfig, tokenizer: ChatTokenizer, name: str) -> tuple[list[int], str]:
    """Ids before the text, and what stands between it and the answer."""
    asked = keys.question(name)
    if section.needle_form == "base":
        before = [*tokenizer.start_ids, *tokenizer.encode(keys.BEFORE)]
        return before, f"{keys.QUESTION.format(question=asked)}{keys.PREFIX} "
    turn = {"role": "user", "content": f"{_TEXT}\n\n{asked}"}
    start, _, rest = tokenizer.render([turn], generation_prompt=True).partition(_TEXT)
    return tokenizer.encode(start), f"{rest}{tokenizer.answer_gap}"


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Ids with which both begin."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
