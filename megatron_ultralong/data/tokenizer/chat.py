"""The one renderer of chats: text for evaluation, ids and masks of responses for training.

Ids are those of AutoTokenizer.apply_chat_template on the same folder. A token is learnt if it lies within a response as
the model would generate it (`chat_turns`); one that straddles the border to the prompt is not, since no model is asked
for it. A template that marks responses with `{% generation %}` is taken at its word.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizer.chat_plans import FEWEST, Plans
from megatron_ultralong.data.tokenizer.chat_template import ChatTemplate, Messages, Span
from megatron_ultralong.data.tokenizer.chat_turns import Rendering, TurnFinder
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.errors import MalformedError, UserError

Message = dict[str, Any]
"""One turn of a chat: `role`, `content`, and what else its template reads."""
Learnt = Literal["all", "last"]
"""Which responses are learnt."""
Sample = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]
"""Ids [n], and the mask [n], 1 where a token is learnt."""

_READ = {
    "tools": ("tools",),
    "tool_calls": ("tool_calls",),
    "function_call": ("function_call",),
    "reasoning_content": ("reasoning_content", "thinking"),
}
"""What says so much that a template must read it: by any of these words."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation to learn from."""

    messages: tuple[Message, ...]
    """In order."""
    responses: tuple[int, ...]
    """Indices of the assistant's messages that are learnt."""
    tools: tuple[Message, ...] | None = None
    """JSON schemas of what it may call."""


class ChatTokenizer:
    """Tokenizer and chat template of a folder in Hugging Face format; nothing is downloaded or executed.

    Args:
        folder: holds tokenizer.json and tokenizer_config.json (or chat_template.jinja).
        date: YYYY-MM-DD for templates that print one; "": `chat_template.CHAT_DATE`.
        chat: a template that can be used must be there; False: it is looked for when a chat is first rendered.

    Raises:
        UserError: the folder holds no tokenizer, or no chat template that can be used.
    """

    def __init__(self, folder: Path, date: str = "", *, chat: bool = True) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.vocab_size = self.tokenizer.vocab_size
        self._date = date
        hf = self.tokenizer.hf
        self._added = {number: str(token) for number, token in hf.added_tokens_decoder.items()}
        self._added_ids = np.array(sorted(self._added), dtype=np.uint32)
        self._backend = without_trimming(hf.backend_tokenizer)
        if chat:
            _ = self.template

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """What renders.

        Raises:
            UserError: there is none that can be used.
        """
        template = ChatTemplate(self.tokenizer, self._date)
        template.source()  # or say that none is for plain chats
        return template

    @functools.cached_property
    def _turns(self) -> TurnFinder:
        return TurnFinder(self.template, {*self._added.values(), *self.tokenizer.hf.all_special_tokens})

    @functools.cached_property
    def _plans(self) -> Plans:
        return Plans(self._turns)

    @functools.cached_property
    def start_ids(self) -> tuple[int, ...]:
        """The special tokens that the tokenizer puts before a text, as its post-processing says: one, or none."""
        plain, whole = self.encode("x"), self.tokenizer.hf("x").input_ids
        for first in range(len(whole) - len(plain) + 1):
            if whole[first : first + len(plain)] == plain:
                return tuple(whole[:first])
        return ()

    @functools.cached_property
    def answer_gap(self) -> str:
        """What the template writes between a prompt and its answer, which the prompt lacks: Llama 2 a space."""
        asked, said = {"role": "user", "content": "x"}, {"role": "assistant", "content": "0"}
        prompt, whole = self.render([asked], generation_prompt=True), self.render([asked, said])
        gap, answer, _ = whole[len(prompt) :].partition("0")
        return gap if answer and whole.startswith(prompt) else ""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without a leading or closing token."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(ids)

    def render(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        """The chat as the model's template writes it; with `generation_prompt` to where the assistant is to go on.

        Raises:
            UserError: the template refuses the messages.
        """
        try:
            return self.template.render(messages, prompt=generation_prompt)
        except MalformedError as error:
            raise UserError(str(error)) from None

    def locate(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """Ids of a text, encoded once, and for each span of characters the tokens that hold any of it.

        Raises:
            UserError: a span is in no token.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        places = []
        for begin, end in spans:
            first = encoding.char_to_token(begin)
            if first is None:
                raise UserError(
                    f"{self.tokenizer.path}: the tokenizer drops {text[begin:end]!r} from {text[begin - 30 : end]!r}; "
                    "use one that keeps text as it is."
                )
            last = first + 1
            while (chars := encoding.token_to_chars(last)) and chars[0] < end:
                last += 1
            places.append((first, last))
        return encoding.ids, places

    def offsets(self, text: str) -> npt.NDArray[np.int64]:
        """The half-open range of characters that each of a text's tokens comes from, int64 [n, 2]."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    def samples(self, chat: Chat, learnt: Learnt = "all") -> list[Sample]:
        """Ids and masks of a chat: one pair, or one a response where earlier turns change (see `chat_turns`).

        Args:
            chat: what to learn from.
            learnt: all its responses, or the last one of the chat alone.

        Raises:
            MalformedError: nothing is learnt, or the template refuses the chat or would leave out part of it.
        """
        return [self._encode(text, spans) for text, spans in self._renderings(chat, self._wanted(chat, learnt))]

    def _wanted(self, chat: Chat, learnt: Learnt) -> tuple[int, ...]:
        self._check_read(chat)
        if learnt == "all":
            return chat.responses
        last = max(i for i, message in enumerate(chat.messages) if message["role"] == "assistant")
        if last not in chat.responses:
            raise MalformedError("messages: the last response has the weight 0 and --mask last learns no other.")
        return (last,)

    def _check_read(self, chat: Chat) -> None:
        """Refuse what the template would leave out without a word."""
        source = self.template.source(chat.tools)
        present = {key for message in chat.messages for key in message if key in _READ}
        present |= {"tools"} if chat.tools is not None else set()
        for key in sorted(present):
            if not any(word in source for word in _READ[key]):
                raise MalformedError(
                    f"messages: have '{key}', which the chat template of {self.tokenizer.path} does not read; remove "
                    "it, or use a tokenizer whose template does."
                )

    def _renderings(self, chat: Chat, wanted: tuple[int, ...]) -> list[Rendering]:
        every = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if self.template.is_marked(chat.tools):
            text, spans = self.template.render_marked(chat.messages, chat.tools)
        elif chat.tools is None and len(wanted) >= FEWEST and (planned := self._plans.rendering(chat.messages)):
            text, spans = planned
        else:
            return self._turns.renderings(chat.messages, chat.tools, wanted)
        if not any(begin < end for begin, end in spans):
            raise MalformedError("messages: the chat template marks nothing in them to be learnt; mend its marks.")
        if len(wanted) < len(every):
            if len(spans) != len(every):
                raise MalformedError(
                    f"messages: the chat template marks {len(spans)} places for {len(every)} responses, so that those "
                    "of some alone cannot be told; learn all of them."
                )
            spans = [span for i, span in zip(every, spans, strict=True) if i in wanted]
        return [(text, spans)]

    def _encode(self, text: str, spans: Sequence[Span]) -> Sample:
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.uint32)
        begins, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        bounds = np.array([*spans, (len(text) + 1, len(text) + 1)], dtype=np.int64).ravel()
        after = np.searchsorted(bounds, begins, side="right")  # odd: begins in a span
        whole = (ends <= bounds[np.minimum(after, len(bounds) - 1)]) | np.isin(ids, self._added_ids)
        return ids, ((after % 2 == 1) & whole).astype(np.uint8)


def without_trimming(backend: Any) -> Any:
    """A copy whose offsets hold the spaces of a token, and that adds, cuts and pads nothing."""
    import tokenizers

    recipe: Mapping[str, Any] = {**json.loads(backend.to_str()), "post_processor": None}
    copy = tokenizers.Tokenizer.from_str(json.dumps(recipe, ensure_ascii=False))
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = backend.encode_special_tokens
    return copy
