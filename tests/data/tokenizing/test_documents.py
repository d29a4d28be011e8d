import gzip

import pytest
import zstandard

from megatron_ultralong.data.tokenizing.documents import Fields, read_documents
from megatron_ultralong.errors import UserError


def read(path, **fields):
    return list(read_documents(path, Fields(**fields)))


def test_texts_sources_and_blank_lines(tmp_path):
    path = tmp_path / "web.part1.jsonl"
    path.write_text('{"text": "a\\u00e9"}\n\n  \n{"text": "b", "source": "books", "id": 3}')
    assert [(d.text, d.source, d.place) for d in read(path)] == [
        ("a\u00e9", "web.part1", f"{path}, line 1"),
        ("b", "books", f"{path}, line 4"),
    ]


def test_compressed_files_and_other_fields(tmp_path):
    path = tmp_path / "web.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"body": "a", "from": "x"}\n{"body": "b"}\n'))
    assert [(d.text, d.source) for d in read(path, text="body", source="from")] == [("a", "x"), ("b", "web")]


def test_zstandard_of_several_frames_and_no_source(tmp_path):
    path = tmp_path / "web.jsonl.zst"
    frames = [zstandard.compress(b'{"text": "a", "source": null}\n{"te'), zstandard.compress(b'xt": "b"}')]
    path.write_bytes(b"".join(frames))
    assert [(d.text, d.source) for d in read(path)] == [("a", "web"), ("b", "web")]


def test_what_only_the_standard_library_reads_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "score": NaN}\n')
    assert [d.text for d in read(path)] == ["a"]


def test_chats(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hi"}], "text": "ignored"}\n')
    (document,) = read(path)
    assert document.messages == ({"role": "user", "content": "hi"},) and document.text == ""
    assert document.characters == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "a"', "is not JSON (Expecting ',' delimiter); mend or remove the line."),
        (b"[1]", "holds a list, not an object; mend or remove the line."),
        (
            b'{"body": "a", "id": 1}',
            "the document has no field 'text' (its fields: body, id); name the right one with --json-keys.",
        ),
        (b'{"text": null}', "field 'text' holds null, not a string; mend it."),
        (b'{"text": "a", "source": 3}', "field 'source' holds a number, not a string; mend it."),
        (b'{"text": "\xff"}', "is not UTF-8 (invalid start byte); mend or remove the line."),
        (b'\xff\xfe{"text": "a"}', "is not UTF-8 (invalid start byte); mend or remove the line."),
        (b'{"text": "\\ud800"}', "has an escape of half a surrogate pair; mend or remove the line."),
        (b'{"messages": "hi"}', "field 'messages' holds a string, not a list of messages; mend it."),
        (
            b'{"messages": [{"role": "user"}]}',
            "field 'messages' has a message without the strings 'role' and 'content'; mend it.",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        read(path, messages="messages")
    assert str(caught.value) == f"{path}, line 2: {complaint}"


def test_a_pair_of_surrogates_is_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n')
    assert read(path)[0].text == "\U0001f600"


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: the input is missing; name a file of JSON Lines\."):
        read(tmp_path / "none.jsonl")


@pytest.mark.parametrize("end", ["gz", "zst"])
def test_a_truncated_archive(tmp_path, end):
    path = tmp_path / f"a.jsonl.{end}"
    compress = gzip.compress if end == "gz" else zstandard.compress
    path.write_bytes(compress(b'{"text": "a"}\n' * 1000)[:-3])
    with pytest.raises(UserError, match=rf"a\.jsonl\.{end}: is truncated; fetch or compress it again\."):
        read(path)


def test_what_is_no_archive(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b'{"text": "a"}')
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be decompressed \(.*\); fetch or compress it again\."):
        read(path)
