"""Needles of a validation: the chat that a template would make, and lengths that hold none."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_ultralong.config.sections import ValidationConfig
from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.training import needle_prompts


def test_a_needle_in_a_chat_is_what_the_template_makes_of_it() -> None:
    """The tiny model's template, around tokens of a text."""
    tokenizer = ChatTokenizer(Path("examples/tiny_cpu/base"))
    section = ValidationConfig(needles=(300,), needle_depths=3, needle_keys=1, needle_form="chat")
    text = np.array(tokenizer.encode("for key in keys:\n    print(key)\n" * 40))
    prompts = needle_prompts._made(section, tokenizer)
    assert [prompt.depth for prompt in prompts] == [0.0, 0.5, 1.0]
    for prompt in prompts:
        ids = prompt.ids(text[: prompt.room])
        said = tokenizer.decode(ids.tolist())
        user, assistant = said.partition("user<|end_header_id|>\n\n")[2].split("<|eot_id|>")
        answer = assistant.partition("<|end_header_id|>\n\n")[2]
        chat = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        assert len(ids) == 300 and said == tokenizer.render(chat)[: len(said)]
        line = re.search(r"\n(The \w+ key is \d{5})\.\n", user)
        assert line is not None and line[1] == answer
        assert line.start() / len(user) == pytest.approx(prompt.depth, abs=0.12)
        assert user.endswith(f"\n\nWhat is the {answer.split()[1]} key?")
    with pytest.raises(
        UserError, match=r"^validation\.needles: length 20 is too short: key, question and answer take "
    ):
        needle_prompts._made(dataclasses.replace(section, needles=(20,)), tokenizer)
    bare = dataclasses.replace(section, needle_form="base")
    assert needle_prompts._made(bare, tokenizer)[0].before[: len(tokenizer.start_ids)] == [*tokenizer.start_ids]
