"""Samples that a reader can open: the prompt's surroundings of the needle, what was wanted, what each model said."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from megatron_ultralong.evaluation.report.markup import details, model_tag, number, section, text
from megatron_ultralong.evaluation.report.opened_samples import Opened
from megatron_ultralong.evaluation.report.scale import length_label, score_color, text_color
from megatron_ultralong.evaluation.run_folder import Answered

_LONGEST = 1200
"""Characters of an answer or reference that are shown."""


def sample_section(samples: Sequence[Opened], names: Sequence[str]) -> str:
    """The section; samples of one task stand together."""
    tasks = [
        details(f"{escape(task)} <small>{_counted(len(group))}</small>", "".join(group), "task")
        for task, group in (
            (task, [_sample(each, names) for each in group])
            for task, group in itertools.groupby(samples, lambda each: each.task)
        )
    ]
    return section(
        "samples",
        "Samples to open",
        "A few of each task: first where the models part, then where all fail, then where all are right. The place of "
        "what was to be found is marked; the prompts are shortened around it.",
        *tasks,
    )


def _counted(samples: int) -> str:
    return "1 sample" if samples == 1 else f"{samples} samples"


def _sample(sample: Opened, names: Sequence[str]) -> str:
    line = next(iter(sample.answers.values()))
    where = f"{length_label(sample.length)} tokens"
    where += f", depth {line.depth:.0%}" if line.depth is not None else ""
    chips = " ".join(_chip(name, sample.answers[name], names) for name in names if name in sample.answers)
    parts = [
        f"<h4>Prompt <small>{line.prompt_tokens:,} tokens, number {line.index}</small></h4>{_prompt(line)}",
        f"<h4>Wanted</h4><pre>{_shortened(' | '.join(line.references))}</pre>",
    ]
    parts += [
        f"<h4>{model_tag(name, names.index(name))} <small>{_remarks(answer)}</small></h4>{_answer(answer)}"
        for name, answer in sample.answers.items()
    ]
    return details(f"{where} {chips}", "".join(parts), "sample")


def _chip(name: str, answer: Answered, names: Sequence[str]) -> str:
    score = 100 * answer.score
    style = f"background:{score_color(score)};color:{text_color(score)}"
    return f'<span class="chip" style="{style}" title="{escape(name)}">{escape(name)} {number(score)}</span>'


def _prompt(line: Answered) -> str:
    if line.excerpt is None:
        return '<p class="muted">the run kept nothing of it</p>'
    before, needle, after = (text(part) for part in line.excerpt)
    if not needle:
        return f"<pre>{before}\n<i>[...]</i>\n{after}</pre>"
    cut = "<i>[...]</i>" if line.place and line.place[0] > len(line.excerpt[0]) else ""
    return f"<pre>{cut}{before}<mark>{needle}</mark>{after}</pre>"


def _answer(answer: Answered) -> str:
    if answer.answer is None:
        return '<p class="muted">something else than what was wanted: it was judged teacher-forced, not generated</p>'
    if not answer.answer.strip():
        return '<p class="muted">nothing</p>'
    return f"<pre>{_shortened(answer.answer)}</pre>"


def _remarks(answer: Answered) -> str:
    words = [number(100 * answer.score)]
    if answer.how == "judge":
        words.append("judged teacher-forced")
    if not answer.finished:
        words.append(f"cut at the budget of {answer.budget} tokens")
    if answer.over_budget:
        words.append(f"over the budget of {answer.budget} tokens")
    if answer.log_likelihood is not None:
        words.append(f"log-likelihood {answer.log_likelihood:.2f} nats")
    return escape("; ".join(words))


def _shortened(content: str) -> str:
    more = len(content) - _LONGEST
    return text(content) if more <= 0 else f"{text(content[:_LONGEST])} <i>[... {more:,} characters more]</i>"
