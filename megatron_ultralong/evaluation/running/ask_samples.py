"""Asks a backend every sample that is not answered yet, and writes each answer down as it comes.

Every process of a job goes through the same samples in the same order and asks the same ones; one writes. Prompts are
encoded a batch at a time, so that memory holds 32M tokens of them, whatever the number of samples.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.evaluation import registry
from megatron_ultralong.evaluation.backends.interface import Answer, Backend, Forced, Judged, Prompt, Refused
from megatron_ultralong.evaluation.rendering import forced_prompt, forced_text, generation_prompt, rendered
from megatron_ultralong.evaluation.run_folder import Answered, How
from megatron_ultralong.evaluation.running.answer_log import Key, RunLog
from megatron_ultralong.evaluation.running.request import Request
from megatron_ultralong.evaluation.running.sample_files import Skip
from megatron_ultralong.evaluation.samples import Sample
from megatron_ultralong.progress import Progress

BATCH_TOKENS = 1 << 25
"""Prompts that are encoded at the same time."""

task_of = functools.cache(registry.find_task)
"""A sample's task by its name."""

_EXCERPT = 240
"""Characters of a prompt that are kept on each side of the needle."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A sample that is to be asked, and how."""

    sample: Sample
    how: How
    key: Key


@dataclasses.dataclass(frozen=True)
class Ready:
    """A question with its ids."""

    question: Question
    prompt: Prompt | Forced
    prompt_tokens: int


class Asker:
    """One run's.

    Args:
        request: what is asked.
        backend: answers.
        tokenizer: the model's.
        log: the writer's files; None on other processes.
        answered: what was answered before, the same on every process.
        past_context: prompts longer than the model's context are asked too.
    """

    def __init__(
        self,
        request: Request,
        backend: Backend,
        tokenizer: ChatTokenizer,
        log: RunLog | None,
        answered: set[Key],
        past_context: bool,
    ) -> None:
        self._request, self._backend, self._tokenizer, self._log = request, backend, tokenizer, log
        self._answered, self._past_context = answered, past_context
        self.keys: list[Key] = []
        """Of every sample gone through, asked now or before."""
        self.refused: list[Skip] = []
        """What was not answered."""

    def question(self, sample: Sample) -> Question:
        """How a sample is asked; its key."""
        task = task_of(sample.task)
        exact = self._request.judge and task.exact and len(sample.outputs) == 1
        how: How = "judge" if exact else "generate"
        text = (forced_text if exact else rendered)(sample, self._request.form, self._tokenizer)
        rest = [sample.lead_in, sample.outputs[0]] if exact else [sample.max_new_tokens, list(self._stop(task))]
        digest = hashlib.sha256(text.encode(errors="surrogatepass") + orjson.dumps([how, *rest]))
        return Question(sample, how, (sample.task, sample.length, sample.index, digest.hexdigest()[:32]))

    def ask(self, samples: Iterable[Sample], progress: Progress) -> None:
        """Ask those that are not answered; `progress` counts tokens of all."""
        batch: list[Ready] = []
        held = 0
        for question in map(self.question, samples):
            if question.key in self._answered:
                self.keys.append(question.key)
                progress.advance(counted(question.sample))
                continue
            ready = self._ready(question)
            if isinstance(ready, Skip):
                self.refused.append(ready)
                continue
            batch.append(ready)
            held += ready.prompt_tokens
            if held >= BATCH_TOKENS:
                self._ask(batch, progress)
                batch, held = [], 0
        self._ask(batch, progress)

    def _ready(self, question: Question) -> Ready | Skip:
        """The ids, or why they are not asked."""
        sample, form = question.sample, self._request.form
        if question.how == "judge":
            forced = forced_prompt(sample, form, self._tokenizer)
            ready = Ready(question, forced, forced.answers[0][0])
            needed = len(forced.ids)
        else:
            stop = self._stop(task_of(sample.task))
            prompt = generation_prompt(sample, form, self._tokenizer, stop)
            ready = Ready(question, prompt, len(prompt.ids))
            needed = len(prompt.ids) + prompt.max_new_tokens
        context = self._backend.context_length
        if context is not None and needed > context and not self._past_context:
            budget = needed - ready.prompt_tokens
            reason = (
                f"{ready.prompt_tokens:,} tokens of prompt and {budget:,} of answer pass the context of {context:,}"
            )
            return Skip(sample.task, sample.length, 1, reason)
        return ready

    def _stop(self, task: registry.Task) -> tuple[str, ...]:
        return (*task.stop, *self._request.stop)

    def _ask(self, batch: Sequence[Ready], progress: Progress) -> None:
        for part in (
            [ready for ready in batch if isinstance(ready.prompt, Prompt)],
            [ready for ready in batch if isinstance(ready.prompt, Forced)],
        ):
            for index, answer in self._answers(part):
                ready = part[index]
                sample = ready.question.sample
                progress.advance(counted(sample))
                if isinstance(answer, Refused):
                    self.refused.append(Skip(sample.task, sample.length, 1, answer.reason))
                    continue
                self.keys.append(ready.question.key)
                if self._log is not None:
                    self._log.add_sample(dataclasses.asdict(self._line(ready, answer)))

    def _answers(self, part: Sequence[Ready]) -> Iterator[tuple[int, Answer | Judged | Refused]]:
        generated = [ready.prompt for ready in part if isinstance(ready.prompt, Prompt)]
        forced = [ready.prompt for ready in part if isinstance(ready.prompt, Forced)]
        if generated:
            yield from self._backend.generate(generated)
        if forced:
            yield from self._backend.judge(forced)

    def _line(self, ready: Ready, answer: Answer | Judged) -> Answered:
        """A line of samples.jsonl."""
        sample = ready.question.sample
        if isinstance(answer, Judged):
            right = all(answer.greedy)
            told: dict[str, Any] = {
                "answer": sample.outputs[0] if right else None,
                "score": float(right),
                "log_likelihood": sum(answer.log_likelihood),
                "finished": True,
                "over_budget": False,
            }
        else:
            told = {
                "answer": answer.text,
                "score": task_of(sample.task).score(answer.text, sample),
                "log_likelihood": None,
                "finished": answer.finished,
                "over_budget": self._tokens(answer) > sample.max_new_tokens,
            }
        return Answered(
            task=sample.task,
            index=sample.index,
            length=sample.length,
            prompt_tokens=ready.prompt_tokens,
            budget=sample.max_new_tokens,
            depth=sample.depth,
            place=sample.place,
            excerpt=excerpt(sample.input, sample.place),
            prompt_hash=ready.question.key[3],
            how=ready.question.how,
            references=sample.outputs,
            seconds=round(answer.seconds, 4),
            haystack_repeats=sample.extra.get("haystack_repeats"),
            **told,
        )

    def _tokens(self, answer: Answer) -> int:
        """Tokens of an answer, of which a server may not say the ids."""
        return len(answer.ids) if answer.ids else len(self._tokenizer.encode(answer.text))


def counted(sample: Sample) -> int:
    """Tokens of a sample as progress counts them; a file of another's making may not say."""
    return sample.prompt_tokens or sample.length


def excerpt(text: str, place: tuple[int, int] | None) -> tuple[str, str, str]:
    """What stands before a place, in it, and after it; without one, how the text begins and ends."""
    if place is None:
        return (text[:_EXCERPT], "", text[_EXCERPT:][-_EXCERPT:])
    first, last = place
    return (text[max(first - _EXCERPT, 0) : first], text[first:last], text[last : last + _EXCERPT])
