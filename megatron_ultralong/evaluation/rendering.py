"""A sample as a model is asked it: the one way from `Sample` to ids, for making, running and judging alike.

In base form the prompt is what the tokenizer puts before a text (`<|begin_of_text|>`, or nothing), `input` and
`answer_prefix`; in chat form the template's rendering of earlier turns, if any, and of `input` as the user's turn, up
to where the assistant goes on, and `answer_prefix`. What the template writes before every answer (Llama 2 a space,
Qwen 3 an empty thought) also stands before a prefix and before a judged answer, as in the rendered chat; but not before
one that begins with white space of its own, which is left as RULER has it. Encoding is the tokenizer's, once over the
whole text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Forced, Prompt
from megatron_ultralong.evaluation.samples import Form, Sample


def rendered(sample: Sample, form: Form, tokenizer: ChatTokenizer) -> str:
    """The prompt's text up to where the answer begins, without `start_ids`'."""
    if form == "chat":
        messages = [*sample.turns, {"role": "user", "content": sample.input}]
        prompt = tokenizer.render(messages, generation_prompt=True)
        return prompt + _gap(sample.answer_prefix, form, tokenizer) + sample.answer_prefix
    return sample.input + sample.answer_prefix


def prompt_ids(text: str, form: Form, tokenizer: ChatTokenizer) -> npt.NDArray[np.int32]:
    """Ids int32 [n] of what `rendered` gave."""
    return _array(_start(form, tokenizer), tokenizer.encode(text))


def generation_prompt(sample: Sample, form: Form, tokenizer: ChatTokenizer, stop: Sequence[str] = ()) -> Prompt:
    """The sample to be answered by generation.

    Raises:
        UserError: its prompt has no token.
    """
    text = rendered(sample, form, tokenizer)
    ids = prompt_ids(text, form, tokenizer)
    if not len(ids):
        raise _empty(sample, "its prompt has no token; mend 'input'")
    return Prompt(
        text=tokenizer.decode(_start(form, tokenizer)) + text,
        ids=ids,
        max_new_tokens=sample.max_new_tokens,
        stop=tuple(stop),
        messages=(*sample.turns, {"role": "user", "content": sample.input + sample.answer_prefix})
        if form == "chat"
        else None,
        group=sample.group,
    )


def forced_text(sample: Sample, form: Form, tokenizer: ChatTokenizer) -> str:
    """Prompt, lead-in and reference, where the reference ends."""
    answer = sample.lead_in + sample.outputs[0]
    gap = "" if sample.answer_prefix else _gap(answer, form, tokenizer)
    return rendered(sample, form, tokenizer) + gap + answer


def forced_prompt(sample: Sample, form: Form, tokenizer: ChatTokenizer) -> Forced:
    """The sample with its one reference in it, to be judged by teacher forcing.

    Judged are the tokens that hold any of the reference: one that also holds what stands before it ("▁482" with the
    lead-in's space) is judged whole, given only what comes before it.

    Raises:
        UserError: the reference has no token of its own, or nothing stands before it.
    """
    reference = sample.outputs[0]
    if not reference:
        raise _empty(sample, "its reference is empty; mend 'outputs'")
    if not tokenizer.decode(tokenizer.encode(reference)).strip():  # else a token before it would be judged in its place
        raise UserError(
            f"{tokenizer.tokenizer.path}: the tokenizer drops {reference!r}, the reference of {sample.task}, length "
            f"{sample.length}, index {sample.index}; use one that keeps text as it is, or give --no-judge."
        )
    text = forced_text(sample, form, tokenizer)
    ids, places = tokenizer.locate(text, [(len(text) - len(reference), len(text))])
    start = _start(form, tokenizer)
    first, last = places[0]
    if first + len(start) == 0:
        raise _empty(sample, "no token stands before its reference; mend 'input'")
    return Forced(_array(start, ids[:last]), ((first + len(start), last + len(start)),), sample.group)


def _gap(answer: str, form: Form, tokenizer: ChatTokenizer) -> str:
    """What a chat has between its prompt and an answer."""
    return tokenizer.answer_gap if form == "chat" and answer and not answer[0].isspace() else ""


def _empty(sample: Sample, what: str) -> UserError:
    return UserError(f"{sample.task}, length {sample.length}, index {sample.index}: {what} in the file of samples.")


def _start(form: Form, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """A chat template writes the first token itself."""
    return tokenizer.start_ids if form == "base" else ()


def _array(start: Sequence[int], ids: Sequence[int]) -> npt.NDArray[np.int32]:
    found = np.empty(len(start) + len(ids), np.int32)
    found[: len(start)], found[len(start) :] = start, ids
    return found
