"""A backend as lm-evaluation-harness asks a model: log-likelihoods of continuations and of texts, greedy generation.

Every process of a job makes the same requests in the same order; answers are kept in answers.jsonl by the writer, so
that a run goes on where it was killed. Prompts that pass the context lose their beginning, which is counted and said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Backend, Forced, Prompt, Refused
from megatron_ultralong.evaluation.run_folder import read_lines
from megatron_ultralong.evaluation.running.answer_log import LineFile
from megatron_ultralong.evaluation.running.reading_windows import progress_of

BATCH = 512
"""Requests that are handed to a backend at the same time."""
_BUDGET = 256


def harness_class() -> type[BackendLM]:
    """`BackendLM` as a subclass of lm_eval's `TemplateLM`, which tokenizes pairs and is imported here."""
    from lm_eval.api.model import TemplateLM

    return type("BackendTemplateLM", (BackendLM, TemplateLM), {})


class BackendLM:
    """Answers to what lm_eval's `TemplateLM` leaves open.

    Args:
        backend: answers.
        tokenizer: the model's.
        answers: file of answers, which the writer appends to; those in it are not asked again.
    """

    def __init__(self, backend: Backend, tokenizer: ChatTokenizer, answers: Path) -> None:
        super().__init__()
        self._backend, self._tokens = backend, tokenizer
        self.tokenizer = tokenizer.tokenizer.hf
        self.truncated = 0
        """Requests that lost their beginning."""
        self._file = LineFile(answers) if backend.is_writer else None
        known = {row["key"]: row["answer"] for row in read_lines(answers)} if backend.is_writer else {}
        self._known: dict[str, Any] = backend.share(known)

    def close(self) -> None:
        """Let others write the file."""
        if self._file is not None:
            self._file.close()

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without context follows."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def max_length(self) -> int:
        """Tokens of a request at most."""
        if self._backend.context_length is None:
            raise UserError("the model's context is not known, which short tasks need; take another --backend.")
        return self._backend.context_length

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart."""
        return self._tokens.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids; with the token that begins a text, unless the text spells it or it is unwanted."""
        start = list(self._tokens.start_ids)
        spelled = bool(start) and string.startswith(self._tokens.decode(start))
        wanted = not spelled if add_special_tokens is None else add_special_tokens
        return (start if wanted else []) + self._tokens.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat's text, up to where the assistant goes on."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        forced = []
        for _texts, context, continuation in requests:
            ids = self._fitted([*context, *continuation], self.max_length)
            if len(continuation) >= len(ids):
                raise UserError(
                    f"a continuation of {len(continuation):,} tokens fills the model's context of {self.max_length:,}; "
                    "leave the task out."
                )
            group = hashlib.sha256(orjson.dumps(context)).hexdigest()
            forced.append(Forced(ids, ((len(ids) - len(continuation), len(ids)),), group))

        def ask(part: Sequence[Forced]) -> Iterator[tuple[int, Any]]:
            for index, judged in self._backend.judge(part):
                self._check(judged)
                yield index, [judged.log_likelihood[0], judged.greedy[0]]  # type: ignore[union-attr]

        keys = [_key("judge", text.ids, text.answers) for text in forced]
        return [(float(value), bool(greedy)) for value, greedy in self._answers("log-likelihoods", keys, forced, ask)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, by windows of the context that do not count a token twice."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]

        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        def ask(part: Sequence[list[int]]) -> Iterator[tuple[int, Any]]:
            for index, ids in enumerate(part):
                pairs = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, context_len=1)
                total = 0.0
                for context, continuation in map(make_disjoint_window, pairs):
                    losses = self._backend.losses([*context, *continuation], len(context))
                    total -= float(losses.sum(dtype="float64"))
                yield index, total

        return [float(value) for value in self._answers("texts", [_key("text", ids) for ids in texts], texts, ask)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedily, up to a stop text or the budget."""
        prompts = [self._prompt(*request.args) for request in requests]

        def ask(part: Sequence[Prompt]) -> Iterator[tuple[int, Any]]:
            for index, answer in self._backend.generate(part):
                self._check(answer)
                yield index, answer.text  # type: ignore[union-attr]

        keys = [_key("generate", prompt.ids, prompt.stop, prompt.max_new_tokens) for prompt in prompts]
        return [str(text) for text in self._answers("answers", keys, prompts, ask)]

    def _prompt(self, context: str, options: dict[str, Any]) -> Prompt:
        if options.get("do_sample") or options.get("temperature"):
            raise UserError("the task draws its answers at random (do_sample), and backends are greedy; leave it out.")
        until = options.get("until") or ()
        budget = int(options.get("max_gen_toks", _BUDGET))
        room = self.max_length - budget
        if room < 1:
            raise UserError(
                f"the task's budget of {budget:,} tokens leaves no room for a prompt in the model's context of "
                f"{self.max_length:,}; leave it out, or take a model of a longer context."
            )
        ids = self._fitted(self.tok_encode(context), room)
        stop = (until,) if isinstance(until, str) else tuple(until)
        return Prompt(text=self._tokens.decode(ids), ids=ids, max_new_tokens=budget, stop=stop)

    def _fitted(self, ids: list[int], room: int) -> list[int]:
        """Without the beginning that has no room."""
        self.truncated += len(ids) > room
        return ids[-room:]

    def _check(self, answer: Any) -> None:
        if isinstance(answer, Refused):
            raise UserError(f"a request was not answered: {answer.reason}.")

    def _answers(
        self,
        what: str,
        keys: Sequence[str],
        questions: Sequence[Any],
        ask: Callable[[Sequence[Any]], Iterator[tuple[int, Any]]],
    ) -> list[Any]:
        """Answers in order; each question is asked once, and not if it was in an earlier run."""
        todo = list({key: index for index, key in enumerate(keys) if key not in self._known}.values())
        with progress_of(self._backend, what, len(todo), "requests") as progress:
            for first in range(0, len(todo), BATCH):
                part = todo[first : first + BATCH]
                for index, answer in ask([questions[place] for place in part]):
                    key = keys[part[index]]
                    self._known[key] = answer
                    if self._file is not None:
                        self._file.append({"key": key, "answer": answer})
                    progress.advance()
        return [self._known[key] for key in keys]


def _key(*parts: Any) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SERIALIZE_NUMPY)).hexdigest()[:32]
