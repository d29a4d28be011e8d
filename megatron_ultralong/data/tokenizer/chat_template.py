"""A tokenizer's chat templates (Jinja) to text, by transformers' apply_chat_template, with a date that stands still.

`strftime_now` of a template becomes a table of its formats written out for one date, in the template itself, so that
every version of transformers renders it so, today as in a year. Whatever a template raises is a complaint about the
chat; only a template that no chat could be rendered with is a `UserError`.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes

from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.errors import MalformedError, UserError

CHAT_DATE = "2024-07-26"
"""The date that Llama 3's own templates fall back on where they find no clock."""

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
Span = tuple[int, int]

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Generation(jinja2.ext.Extension):
    """Parses `{% generation %}`, for `syntax_tree` only."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        """The statements within."""
        next(parser.stream)
        inner: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return inner


def syntax_tree(template: str) -> nodes.Template:
    """A template parsed as transformers parses it.

    Raises:
        jinja2.TemplateSyntaxError: it is no template.
    """
    return jinja2.Environment(extensions=[Generation, jinja2.ext.loopcontrols]).parse(template)


class ChatTemplate:
    """Renders the chats of one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        date: YYYY-MM-DD, what `strftime_now` gives; "": `CHAT_DATE`.

    Raises:
        UserError: the tokenizer has no chat template, or one that is broken or asks for more than a date; the date is
            none, or no template asks for it.
    """

    def __init__(self, tokenizer: Tokenizer, date: str = "") -> None:
        self.path = tokenizer.path
        self._hf = tokenizer.hf
        if not self._hf.chat_template:
            raise UserError(f"{self.path}: the tokenizer has no chat template; add chat_template to its files.")
        named = self._hf.chat_template
        texts: dict[str, str] = named if isinstance(named, dict) else {"default": named}
        day = _parse_date(date or CHAT_DATE)
        self.sources = {name: self._dated(text, day) for name, text in texts.items()}
        """The templates by name, with the date in them."""
        dated = self.sources != texts
        if date and not dated:
            raise UserError(f"--chat-date {date}: the chat template of {self.path} asks for no date; leave it out.")
        self.date = day.date().isoformat() if dated else None
        """The date that is in them; None: they ask for none."""

    def source(self, tools: Tools = None) -> str:
        """The template for chats with these tools, chosen by name as transformers does.

        Raises:
            UserError: there are several, and none for it.
        """
        if tools is not None and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" not in self.sources:
            raise UserError(
                f"{self.path}: of its chat templates ({', '.join(sorted(self.sources))}) none is named 'default'; "
                "name one so."
            )
        return self.sources["default"]

    def render(self, messages: Messages, tools: Tools = None, *, prompt: bool = False) -> str:
        """The chat as text.

        Args:
            messages: with what else a template may read of them.
            tools: JSON schemas.
            prompt: end where the assistant is to go on (the generation prompt).

        Raises:
            MalformedError: the template raises.
        """
        source = self.source(tools)
        try:
            text: str = self._hf.apply_chat_template(
                [dict(message) for message in messages],
                tools=None if tools is None else list(tools),
                chat_template=source,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise self._refusal(error) from None
        return text

    def is_marked(self, tools: Tools = None) -> bool:
        """Whether the template itself marks what is generated, with `{% generation %}`."""
        return _MARK.search(self.source(tools)) is not None

    def render_marked(self, messages: Messages, tools: Tools = None) -> tuple[str, list[Span]]:
        """The chat as text, and the characters that the template marks.

        Raises:
            MalformedError: the template raises, or marks nothing.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        text = self.render(messages, tools)
        (again,), (spans,) = render_jinja_template(
            [[dict(message) for message in messages]],
            tools=None if tools is None else list(tools),
            chat_template=self.source(tools),
            return_assistant_tokens_mask=True,
            **self._hf.special_tokens_map,
        )
        if again != text:
            raise UserError(
                f"{self.path}: its chat template renders a chat otherwise when its marks are asked for; take "
                "{% generation %} out of it."
            )
        marked = [(begin, end) for begin, end in spans if begin < end]
        if not marked:
            raise MalformedError(f"{self.path}: its chat template marks nothing of the chat as generated; mend either.")
        return text, marked

    def _refusal(self, error: Exception) -> MalformedError:
        reason = " ".join(str(error).split()).rstrip(".") or "no reason given"
        if not isinstance(error, jinja2.TemplateError):
            reason = f"{type(error).__name__}: {reason}"
        return MalformedError(f"{self.path}: its chat template refuses the messages ({reason}); mend them.")

    def _dated(self, text: str, day: datetime.datetime) -> str:
        """The template with a table in place of the clock; itself where it does not ask."""
        try:
            tree = syntax_tree(text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"{self.path}: its chat template is broken (line {error.lineno}: {error.message}); mend it."
            ) from None
        names = [name for name in tree.find_all(nodes.Name) if name.name == "strftime_now"]
        if not names:
            return text
        calls = [
            call for call in tree.find_all(nodes.Call) if getattr(call.node, "name", "") == "strftime_now" and call.args
        ]
        formats: set[Any] = {getattr(call.args[0], "value", None) for call in calls}
        if not all(isinstance(each, str) for each in formats):
            raise UserError(
                f"{self.path}: its chat template calls strftime_now with a format that it computes; write it out."
            )
        table = ", ".join(f"{each!a}: {day.strftime(each)!a}" for each in sorted(formats))
        return f"{{% set strftime_now = {{{table}}}.get %}}\n{text}"  # Jinja drops the line break after a block


@functools.cache
def _parse_date(date: str) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise UserError(f"--chat-date {date}: is no date; give one such as {CHAT_DATE}.") from None
