"""What every backend is asked and answers: greedy generation, teacher-forced answers, losses of a text.

Prompts come as text and as ids of the model's own tokenizer; a backend takes what it needs. Answers come in any order,
each with the index of its prompt, so that a run can write them down as they arrive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

Ids: TypeAlias = Sequence[int] | npt.NDArray[np.integer]
"""Token ids; an array of int32 takes a ninth of a list's memory."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """To be continued greedily.

    Attributes:
        text: everything up to where the answer begins, special tokens included.
        ids: the same in ids.
        max_new_tokens: budget.
        stop: texts that end the answer, beside the model's own end tokens; not part of it.
        messages: the same as a chat, for servers that render it themselves; None in base form.
        group: prompts of one group begin alike.
    """

    text: str
    ids: Ids
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    messages: tuple[dict[str, str], ...] | None = None
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A continuation.

    Attributes:
        text: without the prompt, end tokens and stop texts.
        ids: generated, end token included; empty where a server does not say.
        finished: it ended by itself, and not by the budget.
        seconds: spent on it, its share of what was done for several at once.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool
    seconds: float


@dataclasses.dataclass(frozen=True)
class Refused:
    """A prompt that was not answered for a reason of its own: too long for a server, or for the memory.

    Attributes:
        reason: a sentence for whoever reads the results.
    """

    reason: str


@dataclasses.dataclass(frozen=True)
class Forced:
    """A prompt with its answers in it, to be judged in one forward pass.

    Attributes:
        ids: up to the end of the last answer.
        answers: half-open ranges into `ids`, in order; none is empty, since no token says whether an empty one is
            right, and a token stands before each.
        group: texts of one group begin alike.

    Raises:
        ValueError: a range is empty, or not within `ids` after its first.
    """

    ids: Ids
    answers: tuple[tuple[int, int], ...]
    group: str = ""

    def __post_init__(self) -> None:
        for first, last in self.answers:
            if not 1 <= first < last <= len(self.ids):
                raise ValueError(f"answers has the range ({first}, {last}) of {len(self.ids)} ids.")


@dataclasses.dataclass(frozen=True)
class Judged:
    """What teacher forcing says of a `Forced`.

    Attributes:
        greedy: for each answer, whether the argmax is right at each of its positions: greedy generation gives it.
        log_likelihood: for each answer, the sum over its tokens, in nats.
        seconds: spent on it.
    """

    greedy: tuple[bool, ...]
    log_likelihood: tuple[float, ...]
    seconds: float


class Backend(Protocol):
    """A model that answers.

    Attributes:
        name: "megatron", "hf" or "openai".
        context_length: tokens that prompt and answer may take together, or None if it is not known.
        is_writer: this process writes results; of a job of many, the first alone. All processes
            call alike and get the same.
    """

    name: str
    context_length: int | None
    is_writer: bool

    def describe(self) -> dict[str, Any]:
        """What was asked, for results: folder or URL, dtype, layout, versions."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer | Refused]]:
        """Continue each prompt greedily.

        Raises:
            UserError: a prompt with its budget is longer than the context.
        """

    def judge(self, prompts: Sequence[Forced]) -> Iterator[tuple[int, Judged | Refused]]:
        """Teacher forcing.

        Raises:
            UserError: the backend cannot, or a prompt is longer than the context.
        """

    def losses(self, ids: Ids, start: int = 1) -> npt.NDArray[np.float32]:
        """Negative log-likelihood of each token of a text from position `start` (at least 1) on, in nats.

        Returns:
            fp32 [S - start].

        Raises:
            UserError: the backend cannot, or the text is longer than the context.
        """

    def share(self, value: T) -> T:
        """What the writer calls this with, on every process; each calls it alike, and waits for the others."""

    def close(self) -> None:
        """Let go of processes, memory and connections."""
