"""Samples from prompts that may not be cut: a length's are the rows that take more than half of it, and fit.

So lengths that double share no row, and MRCR's bins are those of its page. Rows of no length asked for are left out,
which is said. Every row is encoded once a length.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row
from megatron_ultralong.evaluation.benchmarks.counting import counter_of
from megatron_ultralong.evaluation.benchmarks.middle_cut import data_rows, source_of
from megatron_ultralong.evaluation.registry import MakeOptions
from megatron_ultralong.evaluation.samples import Sample, TooShortError

logger = logging.getLogger(__name__)

Build = Callable[[Row, Path], Sample | None]
"""A row and its file -> the sample with its prompt; None: the row is another task's."""


def make_whole_samples(
    task: str, options: MakeOptions, files: Sequence[str], build: Build, source: str
) -> Iterator[Sample]:
    """Samples, length after length, of each the first `options.count`, and of those `options.only`.

    Args:
        task: its name.
        options: what to make.
        files: patterns of the names of the data's files in a folder.
        build: makes a prompt of a row.
        source: of the wording, see `middle_cut.source_of`.

    Raises:
        TooShortError: no row belongs to a length.
        UserError: no data is named, or it, its rows or the clone cannot be used.
    """
    source, counter = source_of(options, source), counter_of(options.tokenizer)
    for length in options.lengths:
        needs, index = list[int](), 0
        for row, file in data_rows(task, options, files):
            sample = build(row, file)
            if sample is None:
                continue
            tokens = counter.prompt(sample)
            needs.append(tokens + sample.max_new_tokens)
            if not length < 2 * needs[-1] <= 2 * length:
                continue
            if options.only is None or index in options.only:
                yield dataclasses.replace(
                    sample, index=index, length=length, prompt_tokens=tokens, extra=sample.extra | {"prompts": source}
                )
            index += 1
            if index == options.count:
                break
        _say(task, options, length, needs, index)


def _say(task: str, options: MakeOptions, length: int, needs: Sequence[int], made: int) -> None:
    """What was left out; refuse a length without any row."""
    if not needs:
        raise UserError(f"{task}: there is no row of this task in {options.data}; name a file of it by --data.")
    if not made:
        raise TooShortError(
            f"{task}: no row takes between {length // 2} and {length} tokens with its answer: they take {min(needs)} "
            f"to {max(needs)}; ask for a length of which a row takes more than half."
        )
    out = len(needs) - made
    if out:
        logger.info("%s at %d tokens: %d rows are of other lengths, %d of this one", task, length, out, made)
