"""Samples from a benchmark's rows: prompts too long for a length are cut in their middle, as the benchmarks do.

The whole prompt, instructions and all, is cut by tokens before it goes into a chat template: half of what fits from
each end, an odd budget giving one token more to the end (or none, where a benchmark's code drops it). What the
tokenizer puts before a text counts as the benchmarks count it, as the first of the tokens. The cut is made in the text
at the tokens' borders, so the text that stays is the prompt's own; within a character it leaves that out, where
decoding would leave replacement characters. The result is rendered and counted, and cut further where the seam took
more tokens: prompt and answer's budget together never pass the length. Cost: an encoding for a prompt that fits, three
for one that is cut, a further one for each time that its seam took more tokens; and one of the prompt without its text.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row, matching_files, read_rows
from megatron_ultralong.evaluation.benchmarks.counting import Counter, counter_of
from megatron_ultralong.evaluation.benchmarks.official_clone import commit
from megatron_ultralong.evaluation.benchmarks.prediction_files import DATA_MEND
from megatron_ultralong.evaluation.benchmarks.prompt_templates import Template
from megatron_ultralong.evaluation.registry import MakeOptions
from megatron_ultralong.evaluation.samples import Sample, TooShortError

logger = logging.getLogger(__name__)

Build = Callable[[Row, Path], tuple[Sample, Template, Mapping[str, str]]]
"""A row and its file -> what scoring needs, the template, and what its places take; `context` is the long one."""


def data_rows(task: str, options: MakeOptions, files: Sequence[str]) -> Iterator[tuple[Row, Path]]:
    """The data's rows, with their files.

    Raises:
        UserError: no data is named, or it cannot be read.
    """
    if options.data is None:
        raise UserError(f"{task}: its samples are made from the benchmark's data; name the file or folder by --data.")
    for file in matching_files(options.data, files, DATA_MEND):
        for row in read_rows(file, DATA_MEND):
            yield row, file


def source_of(options: MakeOptions, source: str) -> str:
    """Where the wording is from, for results: ours, or a file of a clone and its commit."""
    if options.official is None:
        return source
    return f"{source} at {commit(options.official)}"


def make_cut_samples(
    task: str,
    options: MakeOptions,
    files: Sequence[str],
    build: Build,
    source: str,
    *,
    reserve: int = 0,
    even: bool = False,
    needle: bool = False,
) -> Iterator[Sample]:
    """Samples, length after length.

    Args:
        task: its name.
        options: what to make.
        files: patterns of the names of the data's files in a folder.
        build: makes a prompt of a row.
        source: of the wording, see `source_of`.
        reserve: tokens of the length that the prompt leaves free before the chat template, whatever the budget.
        even: an odd budget's last token is dropped.
        needle: the reference stands in the text word for word, and reports show where.

    Raises:
        TooShortError: a length leaves no room for the text beside instructions and answer's budget.
        UserError: the data, its rows or the clone cannot be used.
    """
    source = source_of(options, source)
    for length in options.lengths:
        away = 0
        for index, (row, file) in enumerate(data_rows(task, options, files)):
            if index == options.count:
                logger.info("%s at %d tokens: took the first %d rows, and there are more", task, length, index)
                break
            base, template, fields = build(row, file)
            base = dataclasses.replace(base, index=index, length=length, extra=base.extra | {"prompts": source})
            bare = template.asked(base, options.form, {**fields, "context": ""})
            sample = template.asked(base, options.form, fields)
            sample = fitted(sample, bare, counter_of(options.tokenizer), reserve, even)
            if needle:
                sample = _with_place(sample)
                away += sample.place is None
            yield sample
        if away:
            logger.warning("%s at %d tokens: the cut took the answer out of %d samples", task, length, away)


def fitted(sample: Sample, bare: Sample, counter: Counter, reserve: int = 0, even: bool = False) -> Sample:
    """The sample with its prompt cut to its length, and counted; `bare` is the same without its long text.

    Raises:
        TooShortError: no room is left for the long text.
    """
    limit = sample.length - sample.max_new_tokens
    room = min(limit, sample.length - reserve)
    least = counter.prompt(bare)
    if least >= room:
        reserved = f"the benchmark reserves {reserve}, " if reserve else ""
        raise TooShortError(
            f"{sample.task}: a length of {sample.length} tokens is too short: the answer may take "
            f"{sample.max_new_tokens}, {reserved}instructions and question take {least}; "
            f"ask for more than {least + sample.length - room}."
        )
    whole = counter.prompt(sample)
    if whole <= room:
        return dataclasses.replace(sample, prompt_tokens=whole)
    spans = counter.tokenizer.offsets(sample.input)
    before = len(counter.tokenizer.start_ids)
    around = whole - len(spans) - before  # what the template adds to the tokens that the benchmarks count
    budget = min(limit - around, sample.length - reserve)
    while True:
        text, removed = cut_middle(sample.input, spans, budget, before, even)
        extra = sample.extra | ({"cut_tokens": removed} if removed else {})
        cut = dataclasses.replace(sample, input=text, extra=extra)
        tokens = counter.prompt(cut)
        if tokens <= limit:
            return dataclasses.replace(cut, prompt_tokens=tokens)
        budget -= tokens - limit


def cut_middle(
    text: str, spans: npt.NDArray[np.int64], budget: int, before: int = 0, even: bool = False
) -> tuple[str, int]:
    """A text without its middle tokens.

    Args:
        text: of T tokens.
        spans: int64 [T, 2], each token's range of characters.
        budget: tokens to keep, those before the text among them.
        before: tokens that stand before the text.
        even: keep budget // 2 of each end; else an odd budget's last one is the end's.

    Returns:
        The text, and how many tokens went.
    """
    tokens = len(spans)
    if tokens + before <= budget:
        return text, 0
    head = max(budget // 2 - before, 0)
    tail = max(budget // 2 if even else budget - budget // 2, 0)
    first, last = (spans[head - 1, 1] if head else 0), (spans[tokens - tail, 0] if tail else len(text))
    first = min(first, spans[head, 0]) if head else first
    last = max(last, spans[tokens - tail - 1, 1]) if tail else last
    return text[:first] + text[last:], tokens - head - tail


def _with_place(sample: Sample) -> Sample:
    """The sample with the place of its reference in the prompt, or a note that the cut took it."""
    place = sample.input.find(sample.outputs[0])
    if place < 0:
        return dataclasses.replace(sample, extra=sample.extra | {"evidence": "cut away"})
    end = place + len(sample.outputs[0])
    return dataclasses.replace(sample, place=(place, end), depth=round(place / len(sample.input), 4))
