"""A conversation to ids and the mask of its responses, with the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.data.tokenizing.documents import MalformedError


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """Render a conversation with the tokenizer's chat template and mark what the assistant says.

    A response is what the template adds for an assistant message after its generation prompt, up to and with
    the last special token (the end of turn). The text is encoded once, as it is at inference; a token that
    straddles the response's first character is not marked. Rendering every prefix makes the cost quadratic
    in the number of messages.

    Args:
        tokenizer: a Hugging Face tokenizer.
        messages: {"role": ..., "content": ...} in order.

    Returns:
        ids: uint32 [n]; mask: uint8 [n], 1 on the responses.

    Raises:
        UserError: no template.
        MalformedError: no assistant message, a message the template refuses, or a template that renders this
            conversation's beginning otherwise than the whole.
    """
    if all(message["role"] != "assistant" for message in messages):
        roles = ", ".join(sorted({message["role"] for message in messages})) or "none"
        raise MalformedError(f"messages: no message has the role 'assistant' (roles: {roles}); add a response.")
    whole = _render(tokenizer, messages, prompt=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:i], prompt=True) if i else ""
        after = _render(tokenizer, messages[: i + 1], prompt=False)
        if not after.startswith(before) or not whole.startswith(after):
            raise MalformedError(
                f"{tokenizer.path}: its chat template renders the first {i + 1} messages otherwise than as the "
                "beginning of the conversation, so the responses cannot be found; use a template that only appends."
            )
        spans.append((len(before), len(after)))
    encoding = tokenizer.hf.backend_tokenizer.encode(whole, add_special_tokens=False)
    ids = np.array(encoding.ids, dtype=np.uint32)
    starts = np.array(encoding.offsets).reshape(-1, 2)[:, 0]
    return ids, _response_mask(tokenizer.hf.all_special_ids, ids, starts, spans)


def _response_mask(
    special_ids: Sequence[int],
    ids: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    spans: list[tuple[int, int]],
) -> npt.NDArray[np.uint8]:
    mask = np.zeros(len(ids), dtype=np.uint8)
    special = np.isin(ids, special_ids)
    for begin, end in spans:
        first, last = np.searchsorted(starts, [begin, end])
        ends = np.flatnonzero(special[first:last])
        mask[first : first + ends[-1] + 1 if len(ends) else last] = 1
    return mask


def _render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
    from jinja2.exceptions import TemplateError

    template = tokenizer.chat_template
    try:
        text: str = tokenizer.hf.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    except TemplateError as error:
        raise MalformedError(
            f"{tokenizer.path}: its chat template refuses the messages ({error}); mend them."
        ) from None
    return text
