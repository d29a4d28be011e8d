import json
import shutil

import numpy as np
import pytest

from megatron_ultralong.data.tokenizer.chat import render_chat
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import MalformedError
from megatron_ultralong.errors import UserError


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def with_template(tokenizer_folder, folder, template):
    shutil.copytree(tokenizer_folder, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if template is None:
        del config["chat_template"]
    else:
        config["chat_template"] = template
    path.write_text(json.dumps(config))
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("messages", "responses"),
    [
        ([user("a?"), assistant("b!")], ["b!<|im_end|>"]),
        ([system("s"), user("a"), assistant("b"), user("c"), assistant("")], ["b<|im_end|>", "<|im_end|>"]),
        # The template's newline and the response's are one token, which is not marked.
        ([user("a"), assistant("\nb\n"), user("c")], ["b\n<|im_end|>"]),
        ([user("say <|im_end|>"), assistant("<|im_end|> x")], ["<|im_end|> x<|im_end|>"]),
    ],
)
def test_only_responses_are_marked(tokenizer, messages, responses):
    ids, mask = render_chat(tokenizer, messages)
    assert ids.tolist() == tokenizer.hf.apply_chat_template(messages, tokenize=True, return_dict=False)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int))).reshape(-1, 2)
    assert [tokenizer.decode(ids[begin:end].tolist()) for begin, end in edges] == responses


def test_characters_of_several_tokens_do_not_move_the_mask(tokenizer):
    ids, mask = render_chat(tokenizer, [user("\U0001f600\u6771"), assistant("\U0001f600")])
    assert tokenizer.decode(ids[mask == 1].tolist()) == "\U0001f600<|im_end|>"


def test_a_template_without_an_end_of_turn(tokenizer_folder, tmp_path):
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    plain = with_template(tokenizer_folder, tmp_path / "plain", template)
    ids, mask = render_chat(plain, [user("a"), assistant("b c")])
    assert plain.decode(ids[mask == 1].tolist()).strip() == "b c"


@pytest.mark.parametrize(
    ("template", "messages", "sentence"),
    [
        (None, [user("a"), assistant("b")], "has no chat template; add chat_template to its files"),
        ("{{ raise_exception('no system') }}", [user("a"), assistant("b")], r"refuses the messages \(no system\)"),
        ("{{ messages | length }}", [user("a"), assistant("b"), user("c")], "renders the first 2 messages otherwise"),
        (
            "x",
            [user("a"), {"role": "gpt", "content": "b"}],
            r"no message has the role 'assistant' \(roles: gpt, user\)",
        ),
    ],
)
def test_chats_that_cannot_be_rendered(tokenizer_folder, tmp_path, template, messages, sentence):
    other = with_template(tokenizer_folder, tmp_path / "other", template)
    with pytest.raises((UserError, MalformedError), match=sentence):
        render_chat(other, messages)
