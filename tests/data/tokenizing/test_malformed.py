"""Documents that cannot be used."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from megatron_ultralong.errors import UserError
from tests.data.conftest import write_lines


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("shard_bytes", [40, 1 << 20])
def test_malformed_lines_stop_the_run_or_are_listed(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", shard_bytes)
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": f"document {i}"}) for i in range(20)]
    lines[3] = ""
    lines[11] = '{"text": 5}'
    lines[17] = "nothing"
    path.write_text("\n".join(lines))
    raw = load_tokenizer("bytes")
    with pytest.raises(UserError, match=r"in\.jsonl, line 12: field 'text' holds a number, not a string; mend it"):
        tokenize_corpus([path], tmp_path / "c", raw, Fields())
    manifest = tokenize_corpus([path], tmp_path / "c", raw, Fields(), TokenizeOptions(malformed="skip"))
    assert manifest["documents"] == 17 and manifest["skipped_documents"] == 2
    listed = (tmp_path / "c.skipped.tsv").read_text().splitlines()
    assert listed == [
        f"{path}, line 12\tfield 'text' holds a number, not a string; mend it.",
        f"{path}, line 18\tis not JSON (Expecting value); mend or remove the line.",
    ]


def test_rows_and_files_that_are_malformed(tmp_path):
    raw = load_tokenizer("bytes")
    table = pyarrow.table({"text": ["a", None, "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: field 'text' holds null"):
        tokenize_corpus([tmp_path / "a.parquet"], tmp_path / "c", raw, Fields())
    with pytest.raises(UserError, match=r"has no column 'body' \(its columns: text\)"):
        tokenize_corpus([tmp_path / "a.parquet"], tmp_path / "c", raw, Fields(text="body"))
    (tmp_path / "b.txt").write_bytes(b"fine \xff")
    with pytest.raises(UserError, match=r"b\.txt: is not UTF-8 \(invalid start byte, near byte 5\); mend or remove"):
        tokenize_corpus([tmp_path / "b.txt"], tmp_path / "c", raw, Fields())
    (tmp_path / "c.txt").write_text("good")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "in"}\n' * 3)[:-4])
    manifest = tokenize_corpus(
        [tmp_path / name for name in ("a.parquet", "b.txt", "c.txt", "d.jsonl.gz")],
        *(tmp_path / "c", raw, Fields(), TokenizeOptions(malformed="skip")),
    )
    assert manifest["documents"] == 6 and manifest["skipped_documents"] == 3


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ([], "holds no document; name files with text or chats"),
        ([{"text": ""}], "every document is empty"),
        ([{"text": "a"}, chat("b", "c")], "line 2: is a chat, unlike the documents before it"),
        ([chat("b", "c"), {"text": "a"}], "line 2: is no chat, unlike the documents before it"),
        ([chat("b", "c"), {"messages": []}], r"line 2: messages: no message has the role 'assistant' \(roles: none\)"),
        ([{"text": "a"}, {"body": "b"}], r"line 2: the document has no field 'text' \(its fields: body\)"),
    ],
)
def test_bad_input_leaves_nothing_and_the_old_corpus_alone(tmp_path, tokenizer, documents, complaint):
    good = write_lines(tmp_path / "good.jsonl", [{"text": "good"}])
    tokenize_corpus([good], tmp_path / "out" / "c", tokenizer, Fields())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    bad = write_lines(tmp_path / "bad.jsonl", documents)
    with pytest.raises(UserError, match=complaint):
        tokenize_corpus([bad], tmp_path / "out" / "c", tokenizer, Fields(), TokenizeOptions(overwrite=True))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
