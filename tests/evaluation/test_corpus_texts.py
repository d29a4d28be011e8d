"""Texts as evaluation reads them: what cannot be read is said in words that its commands know."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.corpus_texts import iterate_texts, texts_fingerprint


def test_texts_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": " "}\n')
    (tmp_path / "b.md").write_text("two")
    assert list(iterate_texts(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("notes.py", "does not say what is in it .*; rename it.$"),
        ("none", "none of its 1 files ends in .*; name another folder.$"),
        ("missing.txt", "the input is missing; name a file that exists.$"),
        ("-", "standard input cannot be; name a file.$"),
    ],
)
def test_what_cannot_be_read_names_no_option_of_another_command(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "notes.py").write_text("x = 1")
    (tmp_path / "none" / "notes.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    for read in (texts_fingerprint, lambda path: list(iterate_texts(path))):
        with pytest.raises(UserError, match=message) as told:
            read(Path(name))
        assert "input-format" not in str(told.value)
