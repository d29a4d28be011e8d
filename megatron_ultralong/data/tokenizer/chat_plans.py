"""Responses of a long chat in one rendering, from a plan that is made once for each sequence of roles.

A plan is `chat_turns` on a chat of place holders, so it is exact for those. It holds for a chat whose template only
prints contents, in every branch (`chat_opaque`), and the chat's own rendering proves it: place holders replaced by
contents, the plan must give that very text. Otherwise there is no plan, and `chat_turns` renders every prompt.

The plan of a longer chat begins with that of its beginning, so that chats of up to `_CHAIN` responses cost a process
three renderings for each. After that the plan takes a later response to begin and end as the earlier ones after the
same role, which the one rendering must confirm at every place; the responses at each power of two and the last are
found by their prompts all the same. So a plan of any length costs 1 + 3 log2(responses / _CHAIN) renderings. Chats with
tools or with more than roles and contents have no plan.
"""

from __future__ import annotations

import dataclasses
import re

from megatron_ultralong.data.tokenizer.chat_opaque import is_opaque
from megatron_ultralong.data.tokenizer.chat_template import Messages, Span
from megatron_ultralong.data.tokenizer.chat_turns import Rendering, TurnFinder
from megatron_ultralong.errors import MalformedError

FEWEST = 3
"""Responses from which on a plan is worth it."""

_CHAIN = 64
_MOST_CHARACTERS = 1 << 24  # of plans that are kept
_HOLDER = "\n \t\ue000{}\ue001\t \n"  # white space on both sides shows what is stripped
_HELD = re.compile("(\n \t)?\ue000([0-9]+)\ue001(\t \n)?")


@dataclasses.dataclass(frozen=True)
class _Plan:
    text: str
    spans: tuple[Span, ...]


class Plans:
    """Plans of one tokenizer's chats, without tools."""

    def __init__(self, turns: TurnFinder) -> None:
        self._turns = turns
        self._plans: dict[tuple[str, ...], _Plan | None] = {}
        self._opaque = is_opaque(turns.template.source())

    def rendering(self, messages: Messages) -> Rendering | None:
        """The chat rendered once and all its responses, or None where that takes more."""
        plain = self._opaque and all(
            message.keys() == {"role", "content"} and message["content"].strip() for message in messages
        )
        plan = self._plan(tuple(message["role"] for message in messages)) if plain else None
        filled = _fill(plan, messages) if plan else None
        if filled is None or filled[0] != self._turns.template.render(messages):
            return None
        return filled

    def _plan(self, roles: tuple[str, ...]) -> _Plan | None:
        if roles in self._plans:
            return self._plans[roles]
        if sum(len(plan.text) for plan in self._plans.values() if plan) > _MOST_CHARACTERS:
            self._plans.clear()
        ends = [end for end, role in enumerate(roles, start=1) if role == "assistant"]
        if len(ends) > _CHAIN:
            base = self._plan(roles[: ends[_CHAIN - 1]])
            plan = self._extended(base, roles, ends) if base else None
        else:
            known = max((end for end in ends if roles[:end] in self._plans), default=0)
            plan = self._plans[roles[:known]] if known else _Plan("", ())
            for end in sorted({*ends, len(roles)} - {*range(known + 1)}):
                plan = self._plans[roles[:end]] = self._longer(plan, roles[:end]) if plan else None
        self._plans[roles] = plan
        return plan

    def _longer(self, plan: _Plan, roles: tuple[str, ...]) -> _Plan | None:
        """The plan for these roles, from that of their beginning, which lacks the last response."""
        spans = plan.spans
        try:
            if roles[-1] == "assistant":
                turn = self._turns.last_turn(_holders(roles), None)
                text, spans = turn.text, (*spans, (turn.begin, turn.end))
            else:
                text = self._turns.template.render(_holders(roles))
        except MalformedError:
            return None
        return _Plan(text, spans) if text.startswith(plan.text[: plan.spans[-1][1] if plan.spans else 0]) else None

    def _extended(self, base: _Plan, roles: tuple[str, ...], ends: list[int]) -> _Plan | None:
        """The plan for these roles, whose responses after those of `base` must look like them."""
        messages = _holders(roles)
        try:
            text = self._turns.template.render(messages)
        except MalformedError:
            return None
        before, held = (list(_HELD.finditer(each)) for each in (base.text, text))
        if len(held) != len(roles) or not text.startswith(base.text[: base.spans[-1][1]]):
            return None
        looks: dict[str, set[tuple[str, str, str]]] = {}  # by the role before: header, what follows it, end of turn
        for end, (begin, last) in list(zip(ends, base.spans, strict=False))[1:]:
            header = base.text[before[end - 2].end() : begin]
            look = (header, base.text[begin : before[end - 1].start()], base.text[before[end - 1].end() : last])
            looks.setdefault(roles[end - 2], set()).add(look)
        spans = list(base.spans)
        for end in ends[_CHAIN:]:
            known = looks.get(roles[end - 2], set())
            if len(known) != 1:
                return None
            ((header, lead, closing),) = known
            place = held[end - 1]
            between = text[held[end - 2].end() : place.start()]
            if between != header + lead or not text.startswith(closing, place.end()):
                return None
            spans.append((place.start() - len(lead), place.end() + len(closing)))
        checked = {len(ends) - 1, *(1 << k for k in range(len(ends).bit_length()) if _CHAIN <= 1 << k < len(ends))}
        for number in checked:
            turn = self._turns.last_turn(messages[: ends[number]], None)
            if spans[number] != (turn.begin, turn.end) or not text.startswith(turn.text[: turn.end]):
                return None
        return _Plan(text, tuple(spans))


def _holders(roles: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": _HOLDER.format(i)} for i, role in enumerate(roles)]


def _fill(plan: _Plan, messages: Messages) -> Rendering | None:
    """The plan with contents in the places of their holders; None where those are not there once each, in order."""
    parts, shifts = [], []  # of each holder, its end in the plan and how far it moves what follows
    done = shift = 0
    for i, found in enumerate(_HELD.finditer(plan.text)):
        if i >= len(messages) or int(found[2]) != i:
            return None
        content = messages[i]["content"]
        content = content if found[1] else content.lstrip()
        content = content if found[3] else content.rstrip()
        parts += [plan.text[done : found.start()], content]
        done = found.end()
        shift += len(content) - len(found[0])
        shifts.append((done, shift))
    if len(shifts) != len(messages):
        return None
    parts.append(plan.text[done:])
    spans, holders, moved = [], iter([*shifts, (len(plan.text) + 1, 0)]), 0
    upcoming = next(holders)
    for span in plan.spans:
        ends = []
        for place in span:
            while upcoming[0] <= place:
                moved = upcoming[1]
                upcoming = next(holders)
            ends.append(place + moved)
        spans.append((ends[0], ends[1]))
    return "".join(parts), spans
