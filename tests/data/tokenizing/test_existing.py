"""What stands where a corpus would be written: kept, named with what differs, or refused as somebody else's."""

from __future__ import annotations

import json

import pytest

from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from megatron_ultralong.errors import UserError
from tests.data.conftest import write_lines


@pytest.fixture
def lines(tmp_path):
    return write_lines(tmp_path / "in.jsonl", [{"text": f"document {i}"} for i in range(3)])


@pytest.mark.parametrize("name", ["c.bin", "c.idx", "c.sources.npy", "c.loss_mask.bin"])
def test_a_file_that_is_no_corpus_is_not_overwritten(tmp_path, lines, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name}: exists already, and no c\.json says that it is a corpus's"):
        tokenize_corpus([lines], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert (tmp_path / name).read_text() == "mine"
    tokenize_corpus([lines], tmp_path / "c", load_tokenizer("bytes"), Fields(), TokenizeOptions(overwrite=True))


def test_what_differs_is_said(tmp_path, lines, tokenizer_folder):
    tokenize_corpus([lines], tmp_path / "c", load_tokenizer("bytes"), Fields())
    with pytest.raises(UserError, match=r"c\.json: exists already \(of another tokenizer\)"):
        tokenize_corpus([lines], tmp_path / "c", load_tokenizer(tokenizer_folder), Fields())
    lines.write_text(lines.read_text() + json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(UserError, match=r"c\.json: exists already \(of other files, or of these before"):
        tokenize_corpus([lines], tmp_path / "c", load_tokenizer("bytes"), Fields())


def test_a_text_corpus_in_the_place_of_chats_leaves_no_mask(tmp_path, lines):
    for name in ("c.loss_mask.bin", "c.loss_mask.idx"):
        (tmp_path / name).write_bytes(b"of chats")
    tokenize_corpus([lines], tmp_path / "c", load_tokenizer("bytes"), Fields(), TokenizeOptions(overwrite=True))
    assert not list(tmp_path.glob("c.loss_mask.*"))


def test_a_number_of_too_many_digits_is_one_malformed_line(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "good"}\n{"text": "ok", "x": ' + "1" * 5000 + "}\n")
    with pytest.raises(UserError, match="line 2: holds a number of too many digits"):
        tokenize_corpus([path], tmp_path / "c", load_tokenizer("bytes"), Fields())
