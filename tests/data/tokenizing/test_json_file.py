"""Files ending in .json: JSON Lines, one array, or one object over several lines."""

import gzip
import json

import pytest

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing import documents, json_file, streams
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from megatron_ultralong.errors import UserError
from tests.data.conftest import same_bytes, write_lines

DOCUMENTS = [{"text": f"text {i} \u6771", "source": "ab"[i % 2]} for i in range(40)]
LINES = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)


def skip(path, prefix):
    return tokenize_corpus([path], prefix, load_tokenizer("bytes"), Fields(), TokenizeOptions(malformed="skip"))


@pytest.mark.parametrize("shard_bytes", [300, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        "\n\n " + LINES,
        json.dumps(DOCUMENTS),
        json.dumps(DOCUMENTS, indent=2),
        "\ufeff" + json.dumps(DOCUMENTS, indent=1, ensure_ascii=False),
        "[\n" + LINES.strip().replace("\n", ",\n") + "\n]\n",
        json.dumps([*DOCUMENTS[:-1], {**DOCUMENTS[-1], "score": float("nan")}]),  # which orjson does not read
    ],
)
def test_lines_and_arrays_hold_the_same(tmp_path, monkeypatch, content, shard_bytes):
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", shard_bytes)
    raw = load_tokenizer("bytes")
    expected = write_lines(tmp_path / "expected.jsonl", DOCUMENTS)
    tokenize_corpus([expected], tmp_path / "whole", raw, Fields())
    (tmp_path / "in.json").write_text(content)
    (tmp_path / "in.json.gz").write_bytes(gzip.compress(content.encode()))
    for name in ("in.json", "in.json.gz"):
        tokenize_corpus([tmp_path / name], tmp_path / name.replace(".", ""), raw, Fields())
        assert same_bytes(tmp_path / "whole", tmp_path / name.replace(".", ""))


def test_one_object_over_several_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "one"}, indent=4))
    tokenize_corpus([tmp_path / "a.json"], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert bytes(open_corpus(tmp_path / "c").tokens[0].tolist()) == b"one"


def test_an_array_of_chats(tmp_path, tokenizer):
    chats = [
        {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": f"b{i}"}]} for i in range(3)
    ]
    tokenize_corpus([write_lines(tmp_path / "a.jsonl", chats)], tmp_path / "lines", tokenizer, Fields())
    (tmp_path / "a.json").write_text(json.dumps(chats, indent=1))
    tokenize_corpus([tmp_path / "a.json"], tmp_path / "array", tokenizer, Fields(), TokenizeOptions(source="a"))
    assert open_corpus(tmp_path / "array").kind == "chat" and same_bytes(tmp_path / "lines", tmp_path / "array")


def test_an_element_that_is_malformed_is_named_or_skipped(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"},\n{"body": "b"},\n3, {"text": "\\ud800"}, {"text": "c"}]')
    with pytest.raises(UserError, match=r"a\.json, element 2: the document has no field 'text' \(its fields: body\)"):
        tokenize_corpus([tmp_path / "a.json"], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert skip(tmp_path / "a.json", tmp_path / "c")["documents"] == 2
    listed = [line.split("\t")[0].split(", ")[-1] for line in (tmp_path / "c.skipped.tsv").read_text().splitlines()]
    assert listed == ["element 2", "element 3", "element 4"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            '[{"text": "a"},\n{"text": "b"',
            r"a\.json, element 1: is no JSON \(Expecting ',' delimiter: line 2 column 13",
        ),
        ('{\n "text": "a"\n}\n{\n "text": "b"\n}\n', r"a\.json, element 1: is no JSON \(Extra data: line 4"),
        ('{"text": "a",\n"id": 1}', r"a\.json, line 1: is not JSON"),
        ('{"text": "a"}\n[1]\n', r"a\.json, line 2: holds a list, not an object"),
    ],
)
def test_what_is_neither_is_refused_by_name(tmp_path, content, sentence):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        tokenize_corpus([tmp_path / "a.json"], tmp_path / "c", load_tokenizer("bytes"), Fields())


def test_a_line_or_a_value_that_is_too_long_is_refused(tmp_path, monkeypatch):
    for module in (streams, documents, json_file):
        monkeypatch.setattr(module, "LONGEST_LINE", 2000)
    monkeypatch.setattr(streams, "_BLOCK", 300)
    path = write_lines(
        tmp_path / "a.jsonl", [{"text": text} for text in ("a", "b" * 1900, "c" * 9000, "d", "e" * 3000)]
    )
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: is longer than 0 MiB; put its text into a file of its own"):
        tokenize_corpus([path], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert skip(path, tmp_path / "c")["documents"] == 3
    listed = [line.split("\t")[0].split(", ")[-1] for line in (tmp_path / "c.skipped.tsv").read_text().splitlines()]
    assert listed == ["line 3", "line 5"]
    (tmp_path / "b.json").write_text(json.dumps([{"text": "a" * 500}] * 9))
    with pytest.raises(
        UserError, match=r"b\.json, element 1: is one JSON value of more than 0 MiB; write one object a"
    ):
        tokenize_corpus([tmp_path / "b.json"], tmp_path / "d", load_tokenizer("bytes"), Fields())
