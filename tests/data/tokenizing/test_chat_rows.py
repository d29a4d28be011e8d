"""Rows of data sets to chats: every layout, from JSON Lines and Parquet alike, and what is refused by name."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_ultralong.data.corpus.corpus import mask_prefix, open_corpus
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.data.tokenizing.chat_rows import chat_fields, read_chat
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from megatron_ultralong.errors import MalformedError, UserError
from tests.data.conftest import write_lines
from tests.data.tokenizer.shapes import build
from tests.data.tokenizer.templates import set_template, with_template
from tools.preprocess_data import preprocess

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
OTHER = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "required": ["b"]}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def read(row):
    return read_chat(row, chat_fields(row, "messages", "text"))


@pytest.mark.parametrize(
    ("row", "messages", "responses", "tools"),
    [
        ({"messages": [USER, ANSWER], "text": "ignored"}, [USER, ANSWER], [1], None),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [USER, ANSWER],
            [1],
            None,
        ),
        ({"messages": [{"from": "user", "value": "a"}, ANSWER]}, [USER, ANSWER], [1], None),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "chatgpt", "value": "b"}]},
            [{"role": "system", "content": "s"}, USER, ANSWER],
            [2],
            None,
        ),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, [USER, ANSWER, USER, ANSWER], [3], None),
        (
            {"prompt": [USER], "completion": [ANSWER], "system": "s"},
            [{"role": "system", "content": "s"}] + [USER, ANSWER],
            [2],
            None,
        ),
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]}, [USER, ANSWER] * 2, [3], None),
        ({"messages": [{**USER, "train": False}, {**ANSWER, "train": True}]}, [USER, ANSWER], [1], None),
        (
            {"messages": [{**USER, "name": None, "tool_calls": None}, {**ANSWER, "tool_calls": []}]},
            [USER, ANSWER],
            [1],
            None,
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                    ANSWER,
                ]
            },
            [{"role": "user", "content": "ab"}, ANSWER],
            [1],
            None,
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "tools": [TOOL]},
            [USER, {"role": "assistant", "tool_calls": [CALL]}],
            [1],
            (TOOL,),
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": "\u00e9"}'}}]},
                ],
                "tools": json.dumps([TOOL]),
            },
            [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "\u00e9"}}}]}],
            [1],
            (TOOL,),
        ),
        (
            {"messages": [USER, {**ANSWER, "reasoning": "hm"}], "tools": []},
            [USER, {**ANSWER, "reasoning_content": "hm", "thinking": "hm"}],
            [1],
            None,
        ),
    ],
)
def test_layouts(row, messages, responses, tools):
    chat = read(row)
    assert (list(chat.messages), list(chat.responses), chat.tools) == (messages, responses, tools)


def test_what_is_no_chat():
    assert chat_fields({"text": "a", "conversations": []}, "messages", "text") == ()
    assert chat_fields({"prompt": "a"}, "messages", "text") == ()
    assert chat_fields({"conversations": []}, "dialogue", "text") == ()
    assert chat_fields({"dialogue": []}, "dialogue", "text") == ("dialogue",)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a", "completion": "b"}, "fields 'prompt' and 'completion' hold text, which belongs to no turn"),
        ({"messages": "hi"}, "field 'messages' holds a string, not a list of messages; mend it."),
        ({"messages": ["hi"]}, "field 'messages' has a string among its messages, not an object; mend it."),
        ({"messages": [{"role": "user"}]}, "has a message without the strings 'role' and 'content'; mend it."),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "without the strings 'role' and 'content'"),
        ({"messages": [USER, {**ANSWER, "content": 3}]}, "without the strings 'role' and 'content'"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "has a message from 'narrator', not one of human, "),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]},
            r"has a content with a part that is no text \(image_url\); remove it.",
        ),
        ({"messages": [{"role": "user", "content": ["a"]}, ANSWER]}, r"part that is no text \(a string\)"),
        ({"messages": [USER]}, r"no message has the role 'assistant' \(roles: user\); add a response."),
        ({"messages": []}, r"no message has the role 'assistant' \(roles: none\)"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "has the weight 0.5, which is neither 0 nor 1; mend it."),
        (
            {"messages": [{**USER, "train": True}, ANSWER]},
            "a message of the user has the train True, and only responses",
        ),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every response has the weight 0"),
        ({"messages": [USER, ANSWER], "tools": "none"}, "field 'tools' is no list of objects, nor JSON of one"),
        ({"messages": [USER, ANSWER], "tools": ["f"]}, "field 'tools' is no list of objects"),
        ({"messages": [USER, ANSWER], "functions": [{}]}, "field 'functions' is OpenAI's older form of tools"),
        ({"messages": [USER, ANSWER], "system": 3}, "field 'system' holds a number, not a string"),
        ({"messages": [{"role": "system", "content": "s"}, ANSWER], "system": "t"}, "both are the system's; keep one"),
        ({"messages": [USER, {**ANSWER, "tool_calls": ["f"]}]}, "has a tool call that is no object with a 'function'"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"arguments": "{"}}]}]}, "has a tool call that"),
    ],
)
def test_refusals(row, sentence):
    with pytest.raises(MalformedError, match=sentence):
        read(row)


ROWS = [
    {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "3"},
            ANSWER,
        ]
    },
    {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]},
    {"messages": [USER, ANSWER], "tools": None},
]
ROWS[0]["tools"] = [TOOL]
ROWS[1]["tools"] = [TOOL, OTHER]
OTHERS = [
    [
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        }
    ],
    [{"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}],
    [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            ]
        }
    ],
    [{"messages": [USER, ANSWER], "tools": json.dumps([TOOL]), "system": "Be brief."}],
]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return with_template(build("llama3", tmp_path_factory.mktemp("qwen") / "q"), "qwen2.5")


def tokenized(folder, path, tokenizer, **options):
    tokenize_corpus([path], folder / path.name, Tokenizer(tokenizer), Fields(), TokenizeOptions(**options))
    return {
        end: (folder / f"{path.name}.{end}").read_bytes() for end in ("bin", "idx", "loss_mask.bin", "loss_mask.idx")
    }


@pytest.mark.parametrize("rows", [ROWS, *OTHERS])
def test_parquet_is_read_as_json_lines(tmp_path, qwen, rows):
    lines = write_lines(tmp_path / "a.jsonl", rows)
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    assert tokenized(tmp_path, table, qwen) == tokenized(tmp_path, lines, qwen)
    ids = IndexedDataset(str(tmp_path / "a.jsonl"))
    hf = Tokenizer(qwen).hf
    for i, row in enumerate(rows):
        chat = read(row)
        expected = hf.apply_chat_template(list(chat.messages), tools=list(chat.tools or ()) or None, return_dict=False)
        assert np.array_equal(ids[i], expected)


def test_options_of_chats_are_part_of_what_a_corpus_is_made_by(tmp_path, qwen, caplog):
    turns = [
        message
        for i in range(3)
        for message in ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"})
    ]
    lines = write_lines(tmp_path / "a.jsonl", [{"messages": turns}])
    every = tokenized(tmp_path, lines, qwen)
    manifest = json.loads((tmp_path / "a.jsonl.json").read_text())
    assert manifest["chat"] == {"mask": "all", "date": None}
    assert manifest["split_chats"] == manifest["split_samples"] == 0
    with pytest.raises(UserError, match="exists already"):
        tokenized(tmp_path, lines, qwen, mask="last")
    last = tokenized(tmp_path, lines, qwen, mask="last", overwrite=True)
    assert last["bin"] == every["bin"] and last["loss_mask.bin"] != every["loss_mask.bin"]
    masks = IndexedDataset(str(mask_prefix(tmp_path / "a.jsonl")))
    assert 0 < masks[0].sum() < len(masks[0]) // 3
    with pytest.raises(UserError, match="asks for no date"):
        tokenized(tmp_path, lines, qwen, chat_date="2030-01-01", overwrite=True)
    text = write_lines(tmp_path / "t.jsonl", [{"text": "a"}])
    for options in ({"mask": "last"}, {"chat_date": "2030-01-01"}):
        with pytest.raises(UserError, match="--mask and --chat-date are for chats and the input holds texts"):
            tokenize_corpus([text], tmp_path / "t", Tokenizer(qwen), Fields(), TokenizeOptions(**options))


def test_the_flags_of_the_tool(tmp_path):
    folder = with_template(build("llama3", tmp_path / "l"), "llama-3.2")
    turns = [USER, ANSWER] * 2
    lines = write_lines(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": turns[:1]}])
    more = {"mask": "last", "chat_date": "2031-02-03", "malformed": "skip", "append_eod": True, "workers": 1}
    preprocess(input=(lines,), output_prefix=tmp_path / "c", tokenizer_model=folder, **more)
    manifest = json.loads((tmp_path / "c.json").read_text())
    assert manifest["chat"] == {"mask": "last", "date": "2031-02-03"}
    assert (manifest["documents"], manifest["skipped_documents"], manifest["append_eod"]) == (1, 1, True)


def test_the_date_is_one_for_a_corpus_and_recorded(tmp_path, caplog, monkeypatch):
    folder = with_template(build("llama3", tmp_path / "l"), "llama-3.2")
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", 200)
    lines = write_lines(tmp_path / "a.jsonl", [{"messages": [USER, {**ANSWER, "content": str(i)}]} for i in range(9)])
    options = {"chat_date": "2031-02-03"}
    prefix, tokenizer = tmp_path / "c", Tokenizer(folder)
    for i in (0, 1):
        tokenize_corpus([lines], prefix, tokenizer, Fields(), TokenizeOptions(shard=(i, 2), **options))
    with caplog.at_level("INFO"):
        manifest = tokenize_corpus([lines], prefix, tokenizer, Fields(), TokenizeOptions(**options))
    assert "shards are done already" not in caplog.text or manifest["documents"] == 9
    assert manifest["chat"]["date"] == "2031-02-03"
    assert "The chat template printed the date 2031-02-03 (--chat-date)." in caplog.text
    ids = IndexedDataset(str(prefix))
    assert all("Today Date: 03 Feb 2031\n" in tokenizer.hf.decode(ids[i].tolist()) for i in range(9))
    with pytest.raises(UserError, match="exists already"):
        tokenize_corpus([lines], prefix, tokenizer, Fields())


def test_chats_that_become_several_samples_are_counted_and_said(tmp_path, caplog):
    folder = with_template(build("llama3", tmp_path / "q3"), "qwen3")
    two = [USER, ANSWER, USER, ANSWER]
    lines = write_lines(
        tmp_path / "a.jsonl", [{"messages": two, "source": "x"}, {"messages": [USER, ANSWER], "source": "y"}]
    )
    with caplog.at_level("INFO"):
        manifest = tokenize_corpus([lines], tmp_path / "c", Tokenizer(folder), Fields())
    assert (manifest["documents"], manifest["split_chats"], manifest["split_samples"]) == (3, 1, 2)
    assert "1 chats became 2 samples, one for each response as it would be served" in caplog.text
    corpus = open_corpus(tmp_path / "c")
    assert np.load(tmp_path / "c.sources.npy").tolist() == [0, 0, 1] and list(corpus.sources) == ["x", "y"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].meta.date }}",
        "{{ messages[1].content + messages[0].extra }}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ 1 // (messages | length - 2) }}",
        "{{ messages[0].content.split(3) }}",
    ],
)
def test_whatever_a_template_raises_is_named_and_can_be_skipped(tmp_path, template):
    folder = build("llama3", tmp_path / "t")
    guard = (
        "{% if messages[0].content == 'a' %}"
        + template
        + "{% else %}ok{% if not add_generation_prompt %}!{% endif %}{% endif %}"
    )
    set_template(folder, guard)
    rows = [{"messages": [{**USER, "content": "fine"}, ANSWER]}, {"messages": [USER, ANSWER, USER]}]
    lines = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 2: .*its chat template refuses the messages \(.+\); mend them"
    ):
        tokenize_corpus([lines], tmp_path / "c", Tokenizer(folder), Fields())
    manifest = tokenize_corpus([lines], tmp_path / "c", Tokenizer(folder), Fields(), TokenizeOptions(malformed="skip"))
    assert (manifest["documents"], manifest["skipped_documents"]) == (1, 1)
    assert (tmp_path / "c.skipped.tsv").read_text().startswith(f"{lines}, line 2\t")
