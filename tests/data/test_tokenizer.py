import json
import logging
import shutil

import numpy as np
import pytest

from megatron_ultralong.data.tokenizer import check_tokenizer, load_tokenizer, tokenizer_fingerprint
from megatron_ultralong.errors import UserError

TEXTS = ["def f(x):\n    return x + 12345\n", "", "na\u00efve \U0001f600 <|im_end|>", "<s>"]


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def rows(batch):
    ids, lengths = batch
    return [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])]


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


def test_ids_are_transformers(tokenizer_folder, tokenizer):
    expected = [tokenizer.hf(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [tokenizer.encode(text) for text in TEXTS] == expected
    assert [tokenizer.decode(ids) for ids in expected] == TEXTS
    slow = load_tokenizer(tokenizer_folder)
    assert rows(slow.encode_batch(TEXTS)) == expected
    fast = load_tokenizer(tokenizer_folder)
    assert fast.accelerate(TEXTS[:1])
    assert rows(fast.encode_batch(TEXTS)) == expected
    assert fast.encode_batch(TEXTS)[0].dtype == np.uint32 and fast.encode_batch([])[1].tolist() == []


def test_size_and_fingerprint(tokenizer_folder, tokenizer):
    assert tokenizer.vocab_size == len(tokenizer.hf)
    assert tokenizer.fingerprint == tokenizer_fingerprint(tokenizer_folder)
    assert len(tokenizer.encode("<s>")) == 3  # the separator is ordinary text


def test_a_tokenizer_that_gigatoken_refuses_stays_with_hugging_face(tokenizer_folder, tmp_path, caplog):
    shutil.copytree(tokenizer_folder, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}
    path.write_text(json.dumps(content))
    other = load_tokenizer(tmp_path / "other")
    with caplog.at_level(logging.INFO):
        assert not other.accelerate(TEXTS)
    assert "the Hugging Face tokenizer is used" in caplog.text
    assert rows(other.encode_batch(TEXTS)) == [other.encode(text) for text in TEXTS]


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
    ids, mask = tokenizer.render_chat(messages)
    assert ids.tolist() == tokenizer.hf.apply_chat_template(messages, tokenize=True, return_dict=False)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int))).reshape(-1, 2)
    assert [tokenizer.decode(ids[begin:end].tolist()) for begin, end in edges] == responses


def test_characters_of_several_tokens_do_not_move_the_mask(tokenizer):
    ids, mask = tokenizer.render_chat([user("\U0001f600\u6771"), assistant("\U0001f600")])
    assert tokenizer.decode(ids[mask == 1].tolist()) == "\U0001f600<|im_end|>"


def test_a_template_without_an_end_of_turn(tokenizer_folder, tmp_path):
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    plain = with_template(tokenizer_folder, tmp_path / "plain", template)
    ids, mask = plain.render_chat([user("a"), assistant("b c")])
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
    with pytest.raises(UserError, match=sentence):
        other.render_chat(messages)


def test_a_missing_a_broken_and_a_wrong_tokenizer(tokenizer_folder, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer is missing; name a folder"):
        load_tokenizer(tmp_path)
    shutil.copytree(tokenizer_folder, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"broken: the tokenizer cannot be loaded \(.*\); mend its files"):
        load_tokenizer(tmp_path / "broken")
    check_tokenizer(tokenizer_folder, tokenizer_fingerprint(tokenizer_folder), tmp_path / "corpus")
    with pytest.raises(UserError, match=r"is not the tokenizer that made .*corpus\.bin; name that one"):
        check_tokenizer(tmp_path / "broken", tokenizer_fingerprint(tokenizer_folder), tmp_path / "corpus")
