"""The one walk over the input: what is taken, in which order, and what is left out or refused by name."""

import bz2
import gzip
import logging
import lzma
import os
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_ultralong.data.corpus.corpus import all_files, open_corpus
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from megatron_ultralong.data.tokenizing.walk import find_files
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.corpus_texts import iterate_texts
from tests.data.conftest import as_nobody, same_bytes, write_lines


def make(root, *names):
    """Files that hold one document each, the text of which is their name without its endings."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.name.split(".")[0]
        if ".parquet" in name.lower():
            pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), path)
        else:
            path.write_text(text if name.lower().endswith((".txt", ".md")) else f'{{"text": "{text}"}}\n')
    return root


def found(*inputs, format="auto", root=None):
    return [(os.path.relpath(piece.path, root or inputs[0]), piece.source) for piece in find_files(inputs, format)]


def texts(prefix):
    tokens = open_corpus(prefix).tokens
    return [bytes(tokens[i].tolist()).decode() for i in range(len(tokens))]


def test_linked_folders_are_followed_and_those_that_lead_back_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make(tmp_path / "elsewhere", "deep/x.txt", "y.jsonl")
    folder = make(tmp_path / "in", "a/b.jsonl", "z.jsonl")
    (folder / "mixed").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "link.jsonl").symlink_to(make(tmp_path, "top.jsonl") / "top.jsonl")
    assert found(folder) == [
        ("a/b.jsonl", "a"),
        ("link.jsonl", "in"),
        ("mixed/deep/x.txt", "deep"),
        ("mixed/y.jsonl", "mixed"),
        ("z.jsonl", "in"),
    ]
    assert f"left out: {folder}/a/loop (leads back to a folder that it is in)." in caplog.text


def test_what_is_reached_twice_is_refused(tmp_path):
    folder = make(tmp_path / "in", "v3/b.jsonl")
    (folder / "c.jsonl").symlink_to(folder / "v3" / "b.jsonl")
    with pytest.raises(UserError, match=r"v3/b\.jsonl: is .*c\.jsonl, which is named twice; name it once"):
        find_files([folder])
    (folder / "c.jsonl").unlink()
    (folder / "latest").symlink_to(folder / "v3")
    with pytest.raises(UserError, match=r"v3: is .*latest, which is named twice; name it once"):
        find_files([folder])


def test_a_link_to_nothing_is_refused(tmp_path):
    folder = make(tmp_path / "in", "b.jsonl")
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.jsonl: is a link to what is missing; mend or remove it"):
        find_files([folder])


def test_what_is_no_file_is_refused(tmp_path):
    folder = make(tmp_path / "in", "b.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    for name in (folder, folder / "pipe.jsonl"):
        with pytest.raises(UserError, match=r"pipe\.jsonl: is neither a file nor a folder"):
            find_files([name])


def test_hard_links_are_two_files(tmp_path):
    folder = make(tmp_path / "in", "b.jsonl")
    os.link(folder / "b.jsonl", folder / "c.jsonl")
    assert len(find_files([folder])) == 2


def test_endings_that_are_left_out_are_counted_and_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = make(tmp_path / "in", "a.jsonl", "x.csv", "y.csv", "z.warc.zip", "README", ".git/config", ".b.txt")
    assert found(folder) == [("a.jsonl", "in")]
    assert "4 files are left out for their endings (.csv 2, no ending 1, .zip 1; the first is " in caplog.text
    assert f"{folder}/README" in caplog.text and "2 hidden files or folders are left out" in caplog.text


def test_endings_in_capitals(tmp_path, tokenizer):
    folder = make(tmp_path / "in", "A.JSONL", "B.Txt", "C.Parquet", "D.JSON")
    for name, module in {"E.JSONL.GZ": gzip, "F.txt.BZ2": bz2, "G.Json.xZ": lzma, "H.MD.ZST": zstandard}.items():
        plain = b'{"text": "%s"}' % name[:1].encode() if "J" in name else name[:1].encode()
        (folder / name).write_bytes(module.compress(plain))
    assert list(iterate_texts(folder)) == list("ABCDEFGH")
    assert [source for _, source in found(*sorted(folder.iterdir()), root=folder)] == list("ABCDEFGH")
    tokenize_corpus([folder], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert texts(tmp_path / "c") == list("ABCDEFGH")


def test_an_output_in_the_input_folder_is_no_input(tmp_path, caplog):
    """Neither its own corpus nor another's, nor the parts of array tasks, whatever the format."""
    caplog.set_level(logging.INFO)
    folder = make(tmp_path / "in", "a.jsonl", "deep/b.jsonl")
    raw = load_tokenizer("bytes")
    tokenize_corpus([folder], tmp_path / "outside", raw, Fields())
    tokenize_corpus([folder], folder / "other", raw, Fields())
    tokenize_corpus([folder], folder / "deep" / "c", raw, Fields(), TokenizeOptions(shard=(0, 2)))
    assert (folder / "deep" / "c.parts" / "lock").exists()
    tokenize_corpus([folder], folder / "deep" / "c", raw, Fields(), TokenizeOptions(shard=(1, 2)))
    tokenize_corpus([folder], folder / "deep" / "c", raw, Fields())
    assert f"{folder}/deep/c.parts (the parts of a corpus)" in caplog.text
    assert f"{folder}/other.json and its tokens (a corpus)" in caplog.text and "left out for" not in caplog.text
    assert same_bytes(tmp_path / "outside", folder / "deep" / "c") and same_bytes(
        tmp_path / "outside", folder / "other"
    )
    caplog.clear()
    tokenize_corpus([folder], folder / "deep" / "c", raw, Fields())
    assert "is already there" in caplog.text
    assert len(find_files([folder], "text")) == 2
    pattern = [f"{folder}/*"]
    with pytest.raises(UserError, match=r"other\.bin: its ending does not say|other\.json: the output would overwrite"):
        find_files(pattern, prefix=folder / "other")


def test_an_input_that_the_output_would_overwrite_is_refused_in_a_folder_too(tmp_path):
    folder = make(tmp_path / "in", "data.json", "more.jsonl")
    with pytest.raises(UserError, match=r"data\.json: the output would overwrite this input; choose another"):
        tokenize_corpus([folder], folder / "data", load_tokenizer("bytes"), Fields())
    assert not any(path.exists() for path in all_files(folder / "data")[1:])


def test_globs_take_folders_too(tmp_path):
    root = make(tmp_path, "d/a.jsonl", "d/sub/b.jsonl", "d/sub/deep/c.jsonl")
    (root / "d" / "empty").mkdir()
    assert found(f"{root}/d/*", root=root / "d") == [
        ("a.jsonl", "a"),
        ("sub/b.jsonl", "sub"),
        ("sub/deep/c.jsonl", "deep"),
    ]
    assert found(f"{root}/d/**", root=root / "d") == [("a.jsonl", "a"), ("sub/b.jsonl", "b"), ("sub/deep/c.jsonl", "c")]


ODD = [b"a b.jsonl", b"caf\xe9.jsonl", b"new\nline.txt", b"tab\t.parquet", "\u6771.json".encode()]


def test_names_of_any_bytes(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, name in enumerate(ODD):
        plain = (
            make(tmp_path, f"x{i}.{name.rpartition(b'.')[2].decode()}") / f"x{i}.{name.rpartition(b'.')[2].decode()}"
        )
        os.rename(plain, os.path.join(os.fsencode(folder), name))
    with open(os.path.join(os.fsencode(folder), ODD[1]), "ab") as stream:
        stream.write(b"broken\n")
    raw, each = load_tokenizer("bytes"), [os.path.join(os.fsdecode(folder), os.fsdecode(name)) for name in ODD]
    with pytest.raises(UserError, match=r"caf\\xe9\.jsonl, line 2: is not JSON") as caught:
        tokenize_corpus([folder], tmp_path / "c", raw, Fields())
    str(caught.value).encode()
    skip = TokenizeOptions(malformed="skip")
    tokenize_corpus(each, tmp_path / "c", raw, Fields(), skip)
    assert texts(tmp_path / "c") == ["x0", "x1", "x2", "x3", "x4"]
    assert open_corpus(tmp_path / "c").sources == ("a b", "caf\\xe9", "new\\nline", "tab\\t", "\u6771")
    rows = (tmp_path / "c.inputs.tsv").read_text().splitlines()
    shown = ["a b.jsonl", "caf\\xe9.jsonl", "new\\nline.txt", "tab\\t.parquet", "\u6771.json"]
    assert [row.split("\t")[2] for row in rows] == [f"{folder}/{name}" for name in shown]
    assert (tmp_path / "c.skipped.tsv").read_text().startswith(f"{folder}/caf\\xe9.jsonl, line 2\tis not JSON")
    tokenize_corpus([folder], tmp_path / "d", raw, Fields(), skip)
    assert sorted(texts(tmp_path / "d")) == ["x0", "x1", "x2", "x3", "x4"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.parquet", "a.jsonl.gz", "shut/a.jsonl"])
def test_what_may_not_be_read_is_one_sentence(name):
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        make(Path(root), name)
        shut = Path(root, name.split("/")[0])
        shut.chmod(0)
        try:
            with as_nobody(), pytest.raises(UserError) as caught:
                list(iterate_texts(Path(root)))
        finally:
            shut.chmod(0o700)
    assert str(caught.value) == f"{shut}: cannot be read (Permission denied); mend its permissions or its disk."


def test_empty_files(tmp_path):
    folder = make(tmp_path / "in", "a.txt")
    for name in ("empty.txt", "empty.jsonl", "empty.json"):
        (folder / name).touch()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], "string")}), folder / "e.parquet")
    manifest = tokenize_corpus([folder], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert texts(tmp_path / "c") == ["a"] and manifest["inputs"] == 5 and manifest["empty_documents"] == 1


def test_held_out_texts_come_from_anything_that_is_tokenized(tmp_path):
    folder = make(tmp_path / "in", "a.jsonl", "b/c.txt", "d.parquet")
    (folder / "e.json").write_text('[{"text": "one"}, {"text": " "},\n {"text": "two"}]')
    assert list(iterate_texts(folder)) == ["a", "c", "d", "one", "two"]
    assert list(iterate_texts(Path(f"{folder}/*.parquet"))) == ["d"]
    write_lines(folder / "f.jsonl", [{"messages": [{"role": "assistant", "content": "a"}]}])
    with pytest.raises(UserError, match=r"f\.jsonl, line 1: is a chat"):
        list(iterate_texts(folder))
