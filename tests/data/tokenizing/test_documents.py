import bz2
import gzip
import json
import lzma

import pytest
import zstandard

from megatron_ultralong.data.tokenizer.chat import Chat
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.peek import kind_of
from megatron_ultralong.data.tokenizing.readers import Reading, read_range
from megatron_ultralong.data.tokenizing.walk import find_files
from megatron_ultralong.data.tokenizing.worker import place
from megatron_ultralong.errors import UserError


def read(path, **fields):
    """Text (or chat) and source of each document of a file."""
    (piece,) = find_files([path])

    def complain(row, reason):
        raise UserError(f"{place(piece, row)}: {reason}")

    reading = Reading(Fields(**fields), kind_of([piece], Fields(**fields), False))
    for batch in read_range(piece, reading, complain, lambda size: None):
        yield from zip(batch.chats or batch.texts, batch.sources, strict=True)


def test_texts_sources_and_blank_lines(tmp_path):
    path = tmp_path / "web.part1.jsonl"
    path.write_text('{"text": "a\\u00e9"}\n\n  \n{"text": "b", "source": "books", "id": 3}')
    assert list(read(path)) == [
        ("a\u00e9", "web.part1"),
        ("b", "books"),
    ]


def test_compressed_files_and_other_fields(tmp_path):
    path = tmp_path / "web.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"body": "a", "from": "x"}\n{"body": "b"}\n'))
    assert list(read(path, text="body", source="from")) == [("a", "x"), ("b", "web")]


def test_zstandard_of_several_frames_and_no_source(tmp_path):
    path = tmp_path / "web.jsonl.zst"
    frames = [zstandard.compress(b'{"text": "a", "source": null}\n{"te'), zstandard.compress(b'xt": "b"}')]
    path.write_bytes(b"".join(frames))
    assert list(read(path)) == [("a", "web"), ("b", "web")]


def test_what_only_the_standard_library_reads_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "score": NaN}\n')
    assert [text for text, _ in read(path)] == ["a"]


def test_chats(tmp_path):
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path.write_text(json.dumps({"messages": messages, "text": "ignored"}))
    assert list(read(path)) == [(Chat(tuple(messages), (1,)), "chat")]


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
        list(read(path, messages="messages"))
    assert str(caught.value) == f"{path}, line 2: {complaint}"


def test_a_pair_of_surrogates_is_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n')
    assert next(read(path))[0] == "\U0001f600"


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: the input is missing; name a file that exists\."):
        list(read(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("end", ["gz", "bz2", "xz", "zst"])
def test_a_truncated_archive(tmp_path, end):
    path = tmp_path / f"a.jsonl.{end}"
    compress = {"gz": gzip, "bz2": bz2, "xz": lzma, "zst": zstandard}[end].compress
    path.write_bytes(compress(b'{"text": "a"}\n' * 1000)[:-3])
    with pytest.raises(UserError, match=rf"a\.jsonl\.{end}, line \d+: is truncated; fetch or compress it again\."):
        list(read(path))


def test_what_is_no_archive(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b'{"text": "a"}')
    with pytest.raises(
        UserError, match=r"a\.jsonl\.gz, line 1: cannot be decompressed \(.*\); fetch or compress it again\."
    ):
        list(read(path))
