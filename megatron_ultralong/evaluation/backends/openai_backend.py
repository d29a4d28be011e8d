"""The backend over any server that speaks OpenAI's API: vLLM, SGLang, NIM, transformers serve.

Completions get the prompt's ids where the server takes ids, so that it reads exactly what other backends read; a server
that wants text gets the text, without the special token that it puts before it itself. Chats are rendered by the
server; an answer prefix then ends the user's message, since not every server goes on with a begun answer. Requests run
in threads; the memory for one is its prompt and its JSON.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.answer_stops import cut_at
from megatron_ultralong.evaluation.backends.interface import Answer, Forced, Ids, Judged, Prompt, Refused
from megatron_ultralong.evaluation.backends.json_http import JsonHttp, RefusedRequestError
from megatron_ultralong.evaluation.backends.model_options import ModelOptions

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_LENGTHS = ("max_model_len", "context_length", "context_window", "max_context_length", "max_input_tokens")
"""What servers call the context in /v1/models: vLLM and SGLang the first."""
_TOO_LONG = ("context length", "context_length", "too long", "maximum length", "max_model_len", "longer than")


class OpenAIBackend:
    """A model behind a URL; see `interface.Backend`.

    Args:
        options: model, URL, endpoint, key's variable, concurrency, timeout, retries.
        tokenizer: the model's.

    Raises:
        UserError: the server does not answer, or refuses the key.
    """

    name = "openai"
    is_writer = True

    def __init__(self, options: ModelOptions, tokenizer: ChatTokenizer) -> None:
        self._options, self._tokenizer = options, tokenizer
        key = os.environ.get(options.key_variable, "")
        self._http = JsonHttp(server_url(options.url), key, options.timeout, options.retries)
        self._start = tokenizer.decode(tokenizer.start_ids) if tokenizer.start_ids else ""
        self._by_ids = options.endpoint == "completions"
        self._lock = threading.Lock()
        self.context_length = self._greet()

    def describe(self) -> dict[str, Any]:
        """URL, model, endpoint and how prompts are sent; the key is no part of it."""
        prompts = "rendered here" if self._options.endpoint == "completions" else "rendered by the server"
        return {
            "name": self.name,
            "model": self._options.model,
            "url": _without_secrets(self._http.url),
            "endpoint": self._options.endpoint,
            "prompts": prompts,
        }

    def share(self, value: T) -> T:
        """There is one process."""
        return value

    def close(self) -> None:
        """No request is tried again."""
        self._http.stopped.set()

    def _greet(self) -> int | None:
        """Ask what is served; the context's length, where the server says it."""
        try:
            found = self._http.get("/models", retries=0)
        except RefusedRequestError as error:
            if error.status in (401, 403):
                raise self._key_refused(error) from None
            logger.info("%s/models: %s; the context's length is not known.", self._http.url, error)
            return None
        rows = found.get("data") if isinstance(found, dict) else None
        rows = [row for row in rows or [] if isinstance(row, dict)]
        own = next((row for row in rows if row.get("id") == self._options.model), None)
        if own is None:
            if rows:
                names = ", ".join(str(row.get("id")) for row in rows[:4])
                logger.info("%s/models does not name %s; it names %s.", self._http.url, self._options.model, names)
            return None
        return next((own[name] for name in _LENGTHS if isinstance(own.get(name), int)), None)

    def _key_refused(self, error: RefusedRequestError) -> UserError:
        variable = self._options.key_variable
        state = "is refused" if self._http.key else "is not set"
        return UserError(
            f"{self._http.url}: answers {error.status} ({error.said}); the key in {variable} {state}; set it, or name "
            "another variable by --key-variable."
        )

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer | Refused]]:
        """Several at a time, in the order of answering."""
        return self._parallel(self._answer, prompts)

    def judge(self, prompts: Sequence[Forced]) -> Iterator[tuple[int, Judged | Refused]]:
        """By vLLM's `prompt_logprobs`, which says of every token of the prompt how likely it was."""
        return self._parallel(self._judged, prompts)

    def losses(self, ids: Ids, start: int = 1) -> npt.NDArray[np.float32]:
        """By `prompt_logprobs`."""
        found = self._prompt_logprobs(ids)
        if isinstance(found, Refused):
            raise UserError(f"{self._http.url}: {found.reason}")
        return np.array([-value for _, value in found[start:]], np.float32)

    def _parallel(self, ask: Callable[[Any], R], prompts: Sequence[Any]) -> Iterator[tuple[int, R]]:
        """Threads are daemons, so that Ctrl-C waits for no server."""
        left, done = iter(enumerate(prompts)), queue.SimpleQueue[tuple[int, R | BaseException]]()

        def work() -> None:
            while not self._http.stopped.is_set():
                with self._lock:
                    index, prompt = next(left, (-1, None))
                if index < 0:
                    return
                try:
                    done.put((index, ask(prompt)))
                except BaseException as error:
                    done.put((index, error))

        for _ in range(min(self._options.concurrency, len(prompts))):
            threading.Thread(target=work, daemon=True).start()
        for _ in prompts:
            index, answer = done.get()
            if isinstance(answer, BaseException):
                self._http.stopped.set()
                raise answer
            yield index, answer

    def _answer(self, prompt: Prompt) -> Answer | Refused:
        started = time.monotonic()
        body: dict[str, Any] = {"model": self._options.model, "max_tokens": prompt.max_new_tokens, "temperature": 0}
        if prompt.stop:
            body["stop"] = list(prompt.stop)
        if self._options.endpoint == "chat":
            if prompt.messages is None:
                raise UserError("--endpoint chat asks in chat form; give --form chat, or --endpoint completions.")
            found = self._post("/chat/completions", body | {"messages": list(prompt.messages)})
        else:
            found = self._complete(body, prompt.ids, prompt.text)
        if isinstance(found, Refused):
            return found
        choice = self._choice(found)
        text = choice["message"].get("content") if isinstance(choice.get("message"), dict) else choice.get("text")
        if not isinstance(text, str | None):
            raise self._odd(f"its choice has no text but {text!r}")
        stopped = choice.get("finish_reason") != "length"
        return Answer(cut_at(text or "", prompt.stop), (), stopped, time.monotonic() - started)

    def _complete(self, body: dict[str, Any], ids: Ids, text: str) -> Any:
        """A completion by ids or, where the server does not take them, by text."""
        if self._by_ids:
            found = self._post("/completions", body | {"prompt": np.asarray(ids).tolist()}, by_ids=True)
            if found is not None:
                return found
        return self._post("/completions", body | {"prompt": text.removeprefix(self._start)})

    def _post(self, path: str, body: dict[str, Any], by_ids: bool = False) -> Any:
        """The server's answer, `Refused`, or None: ids are not taken."""
        try:
            return self._http.post(path, body)
        except RefusedRequestError as error:
            said = error.said.lower()
            if error.status in (401, 403):
                raise self._key_refused(error) from None
            if error.status == 413 or any(words in said for words in _TOO_LONG):
                return Refused(f"the server refuses it: {error.said}")
            if by_ids and error.status in (400, 422) and "prompt" in said:
                with self._lock:
                    if self._by_ids:
                        self._by_ids = False
                        logger.info("%s takes no ids; prompts are sent as text.", self._http.url)
                return None
            mend = "see what it serves, and --model" if error.status == 404 else "see to the server's options"
            raise UserError(f"{self._http.url}{path}: answers {error.status} ({error.said}); {mend}.") from None

    def _choice(self, found: Any) -> dict[str, Any]:
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._odd(f"its answer has no 'choices' but {str(found)[:80]!r}")
        return dict(choices[0])

    def _odd(self, what: str) -> UserError:
        return UserError(f"{self._http.url}: {what}; it speaks another API than OpenAI's: see --url and --endpoint.")

    def _judged(self, prompt: Forced) -> Judged | Refused:
        started = time.monotonic()
        found = self._prompt_logprobs(prompt.ids)
        if isinstance(found, Refused):
            return found
        parts = [found[first:last] for first, last in prompt.answers]
        greedy = tuple(all(right for right, _ in part) for part in parts)
        return Judged(greedy, tuple(sum(value for _, value in part) for part in parts), time.monotonic() - started)

    def _prompt_logprobs(self, ids: Ids) -> list[tuple[bool, float]] | Refused:
        """For each token whether it is the likeliest, and its log-probability in nats; the first has none."""
        named = np.asarray(ids).tolist()
        body = {"model": self._options.model, "prompt": named, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        found = self._post("/completions", body, by_ids=True)
        if isinstance(found, Refused):
            return found
        rows = None if found is None else self._choice(found).get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(named):
            raise UserError(
                f"{self._http.url}: the server does not say prompt_logprobs (vLLM does), which judging and perplexity "
                "need; give --no-judge, or another --backend."
            )
        pairs = [(False, 0.0)]
        for token, row in zip(named[1:], rows[1:], strict=True):
            entry = row.get(str(token)) if isinstance(row, dict) else None
            if not isinstance(entry, dict) or not {"rank", "logprob"} <= entry.keys():
                raise self._odd(f"prompt_logprobs has {str(row)[:60]!r} for the token {token}")
            pairs.append((entry["rank"] == 1, float(entry["logprob"])))
        return pairs


def server_url(url: str) -> str:
    """With /v1 behind it where no path is given, and no slash at the end."""
    url = url.rstrip("/")
    return url if urllib.parse.urlsplit(url).path else f"{url}/v1"


def _without_secrets(url: str) -> str:
    """Without a user's name, password or query."""
    parts = urllib.parse.urlsplit(url)
    place = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    return urllib.parse.urlunsplit((parts.scheme, place, parts.path, "", ""))
