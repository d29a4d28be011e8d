"""One sample of a RULER task under way: its own chance, its prompt with any context, and the context that fits."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from megatron_ultralong.evaluation.benchmarks.counting import Counter, counter_of
from megatron_ultralong.evaluation.benchmarks.fitting import Plan, fit
from megatron_ultralong.evaluation.benchmarks.ruler.ruler_clone import wording_of
from megatron_ultralong.evaluation.benchmarks.ruler.wording import Template, Wording
from megatron_ultralong.evaluation.registry import MakeOptions
from megatron_ultralong.evaluation.samples import Sample, TooShortError


@dataclasses.dataclass(frozen=True)
class Asking:
    """What a sample is made for.

    Attributes:
        options: of the command.
        task: full name.
        budget: tokens of the answer.
        length: asked for.
        index: of the sample.
    """

    options: MakeOptions
    task: str
    budget: int
    length: int
    index: int

    @functools.cached_property
    def rng(self) -> random.Random:
        """The sample's own: it depends on what the sample is, and on nothing made before."""
        return random.Random(f"{self.task} {self.options.seed} {self.length} {self.index}")

    @property
    def wording(self) -> Wording:
        """Ours, or the clone's."""
        return wording_of(self.options.official)

    @property
    def counter(self) -> Counter:
        """Of the tokenizer."""
        return counter_of(self.options.tokenizer)

    @property
    def room(self) -> int:
        """Tokens of the rendered prompt, at most."""
        return self.length - self.budget

    def sample(
        self,
        template: Template,
        context: str,
        fields: Mapping[str, Any],
        outputs: tuple[str, ...],
        *,
        before: str = "",
        place: tuple[int, int] | None = None,
        depth: float | None = None,
        group: str = "",
        **extra: Any,
    ) -> Sample:
        """The sample with a context; its tokens are not yet counted.

        Args:
            template: of the prompt.
            context: what fills it.
            fields: of the template.
            outputs: references.
            before: a solved example.
            place: in the context.
            depth: see `Sample`.
            group: see `Sample`.
            extra: further entries of `extra`.
        """
        text, prefix, begin = template.compose(context, fields)
        begin += len(before)
        wording = {"wording": self.wording.name}
        if self.wording.commit is not None:
            wording["official_commit"] = self.wording.commit
        return Sample(
            task=self.task,
            index=self.index,
            input=before + text,
            outputs=outputs,
            length=self.length,
            answer_prefix=prefix,
            max_new_tokens=self.budget,
            prompt_tokens=0,
            form=self.options.form,
            depth=None if depth is None else round(depth, 4),
            place=None if place is None else (begin + place[0], begin + place[1]),
            group=group,
            extra={**wording, **extra},
        )

    def fitted(self, plan: Plan, build: Callable[[int], Sample], what: str, least: int = 1) -> Sample:
        """The sample with the most units that fit.

        Args:
            plan: what units cost.
            build: the sample with so many.
            what: the units' name.
            least: units below which a length is refused.

        Raises:
            TooShortError: not so many fit.
        """
        best: dict[int, Sample] = {}

        def measure(count: int) -> int:
            sample = build(count)
            tokens = self.counter.prompt(sample)
            if tokens <= self.room and count >= max(best, default=0):
                best.clear()
                best[count] = dataclasses.replace(sample, prompt_tokens=tokens)
            return tokens

        found = fit(plan, measure, self.room)
        if found is None or found[0] < least:
            raise TooShortError(
                f"{self.task}: length {self.length} is too short: prompt and answer take "
                f"{measure(least) + self.budget} tokens with {least} {what}, {self.budget} of them the answer's; raise "
                "--lengths."
            )
        return best[found[0]]


def each_sample(draw: Callable[[Asking], Sample], task: str, budget: int, options: MakeOptions) -> Iterator[Sample]:
    """All samples that the options ask for, length after length."""
    for length in options.lengths:
        for index in options.only if options.only is not None else range(options.count):
            yield draw(Asking(options, task, budget, length, index))
