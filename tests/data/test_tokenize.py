import fcntl
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_ultralong.data import cutting, encoders, inputs, readers, streams, tokenize
from megatron_ultralong.data.corpus import open_corpus
from megatron_ultralong.data.documents import Fields
from megatron_ultralong.data.tokenize import TokenizeOptions, parse_shard, tokenize_corpus
from megatron_ultralong.data.tokenizer import load_tokenizer
from megatron_ultralong.errors import UserError


def write_lines(path, documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture
def text_file(tmp_path):
    documents = [{"text": f"document {i}: " + "word " * (7 * i), "source": "ab"[i % 2]} for i in range(9)]
    documents.insert(3, {"text": "", "source": "empty"})
    return write_lines(tmp_path / "in.jsonl", documents)


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_texts_in_order_with_sources(text_file, tmp_path, tokenizer):
    second = write_lines(tmp_path / "books.jsonl", [{"text": "last"}])
    manifest = tokenize_corpus([text_file, second], tmp_path / "out" / "c", tokenizer, Fields())
    corpus = open_corpus(tmp_path / "out" / "c")
    texts = [tokenizer.decode(corpus.tokens[i].tolist()) for i in range(len(corpus.tokens))]
    assert texts == [f"document {i}: " + "word " * (7 * i) for i in range(9)] + ["last"]
    assert corpus.sources == ("a", "b", "books")
    assert corpus.source_ids().tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 2]
    assert manifest["documents"] == 10 and manifest["empty_documents"] == 1 and manifest["kind"] == "text"
    assert manifest["tokens"] == len(corpus.tokens.tokens) and corpus.vocab_size == tokenizer.vocab_size
    assert [entry["bytes"] for entry in manifest["inputs"]] == [text_file.stat().st_size, second.stat().st_size]
    theirs = IndexedDataset(str(tmp_path / "out" / "c"))
    assert all((theirs[i] == corpus.tokens[i]).all() for i in range(10))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c.bin", "c.idx", "c.json", "c.sources.npy"]


def same_bytes(one, other):
    return all(
        Path(f"{one}.{end}").read_bytes() == Path(f"{other}.{end}").read_bytes()
        for end in ("bin", "idx", "sources.npy")
    )


def test_the_bytes_depend_neither_on_the_cut_nor_on_the_workers_nor_on_gigatoken(
    tmp_path, tokenizer, tokenizer_folder, monkeypatch
):
    documents = [{"text": f"{i} na\u00efve words " * (i % 50), "source": "abc"[i % 3]} for i in range(600)]
    path = write_lines(tmp_path / "in.jsonl", documents)
    second = write_lines(tmp_path / "second.jsonl", documents[:5])
    tokenize_corpus([path, second], tmp_path / "whole", tokenizer, Fields())
    monkeypatch.setattr(inputs, "_SHARD_BYTES", 3000)
    monkeypatch.setattr(tokenize, "_ALONE_BYTES", 0)
    two = tokenize_corpus([path, second], tmp_path / "two", tokenizer, Fields(), TokenizeOptions(workers=2))
    assert len(two["shards"]) > 20 and same_bytes(tmp_path / "whole", tmp_path / "two")
    slow = load_tokenizer(tokenizer_folder)
    monkeypatch.setattr(slow, "check_fast", lambda recipe, sample: False)
    tokenize_corpus([path, second], tmp_path / "slow", slow, Fields(), TokenizeOptions(workers=2))
    assert same_bytes(tmp_path / "whole", tmp_path / "slow")
    assert not list(tmp_path.glob("*.parts"))


def test_every_format_gives_the_same_documents(tmp_path, tokenizer):
    texts = ["first one", "zw\u00f6lf", "third " * 500]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    (folder / ".hidden.txt").write_text("no")
    (folder / "readme.xyz").write_text("no")
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines[:20]) + gzip.compress(lines[20:]))
    (tmp_path / "c.ndjson.zst").write_bytes(zstandard.compress(lines))
    pyarrow.parquet.write_table(
        pyarrow.table({"id": [1, 2, 3], "text": texts}), tmp_path / "d.parquet", row_group_size=2
    )
    names = ["a.jsonl", "b.jsonl.gz", "c.ndjson.zst", "d.parquet", "texts", "[a]*.jsonl"]
    for name in names:
        manifest = tokenize_corpus([tmp_path / name], tmp_path / "out" / name, tokenizer, Fields())
        corpus = open_corpus(tmp_path / "out" / name)
        assert [tokenizer.decode(corpus.tokens[i].tolist()) for i in range(3)] == texts
        assert manifest["inputs"][0]["fingerprint"]
    assert open_corpus(tmp_path / "out" / "texts").sources == ("texts",)
    assert open_corpus(tmp_path / "out" / "c.ndjson.zst").sources == ("c",)
    manifest = tokenize_corpus(
        [tmp_path / "a.jsonl"], tmp_path / "out" / "named", tokenizer, Fields(), TokenizeOptions(source="web")
    )
    assert manifest["sources"] == ["web"]


def test_the_histogram_counts_documents_and_tokens_by_source(tmp_path):
    documents = [
        {"text": "x" * n, "source": source} for n, source in [(1, "a"), (2, "a"), (3, "b"), (9, "a"), (15, "a")]
    ]
    path = write_lines(tmp_path / "in.jsonl", documents)
    manifest = tokenize_corpus([path], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert manifest["length_histogram"] == {
        "tokens_from": [1, 2, 4, 8],
        "documents": {"a": [1, 1, 0, 2], "b": [0, 1, 0, 0]},
        "tokens": {"a": [1, 2, 0, 24], "b": [0, 3, 0, 0]},
    }


def test_an_end_after_each_document(tmp_path, tokenizer):
    path = write_lines(tmp_path / "in.jsonl", [{"text": "a"}, {"text": ""}, {"text": "b c"}])
    tokenize_corpus([path], tmp_path / "c", tokenizer, Fields(), TokenizeOptions(append_eod=True))
    corpus = open_corpus(tmp_path / "c")
    texts = [tokenizer.decode(corpus.tokens[i].tolist()) for i in range(2)]
    assert texts == ["a<|im_end|>", "b c<|im_end|>"]


@pytest.mark.parametrize("shard_bytes", [40, 1 << 20])
def test_malformed_lines_stop_the_run_or_are_listed(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(inputs, "_SHARD_BYTES", shard_bytes)
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


@pytest.mark.parametrize("fast", [True, False])
def test_a_long_text_is_cut_exactly(tmp_path, tokenizer, tokenizer_folder, monkeypatch, fast):
    """Cut in many pieces, from JSON and from a text file of several blocks, the ids are those of the whole text."""
    text = ("It's 12345 o'clock,  said  \n\n the na\u00efve \u6771\u4eac 'll \t x\r\n" * 40 + "no cut \u6771" * 9) * 5
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    write_lines(tmp_path / "b.jsonl", [{"text": "short"}, {"text": text}, {"text": text[:-1]}, {"text": "end"}])
    monkeypatch.setattr(readers, "_LONG", 2000)
    monkeypatch.setattr(streams, "_BLOCK", 700)
    monkeypatch.setattr(readers, "PIECE", 100)
    monkeypatch.setattr(encoders, "PIECE", 100)
    monkeypatch.setattr(readers, "pieces", lambda text: cutting.pieces(text, size=100))
    ours = load_tokenizer(tokenizer_folder)
    if not fast:
        monkeypatch.setattr(ours, "check_fast", lambda recipe, sample: False)
    options = TokenizeOptions(workers=3)
    tokenize_corpus([tmp_path / "a.txt", tmp_path / "b.jsonl"], tmp_path / "c", ours, Fields(), options)
    corpus = open_corpus(tmp_path / "c")
    expected = [tokenizer.encode(each) for each in (text, "short", text, text[:-1], "end")]
    assert [corpus.tokens[i].tolist() for i in range(5)] == expected


def test_shares_of_a_corpus_and_their_merge(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_SHARD_BYTES", 100)
    path = write_lines(tmp_path / "in.jsonl", [{"text": f"document {i}"} for i in range(50)])
    raw = load_tokenizer("bytes")
    tokenize_corpus([path], tmp_path / "whole", raw, Fields())
    for i in range(3):
        assert tokenize_corpus([path], tmp_path / "c", raw, Fields(), TokenizeOptions(shard=(i, 3))) is None
    assert not (tmp_path / "c.bin").exists()
    monkeypatch.setattr(tokenize, "run_alone", None)  # nothing is left to do but to merge
    tokenize_corpus([path], tmp_path / "c", raw, Fields())
    assert same_bytes(tmp_path / "whole", tmp_path / "c") and not list(tmp_path.glob("*.parts"))


DRIVER = """
import logging, sys
from pathlib import Path
from megatron_ultralong.data import inputs, tokenize
from megatron_ultralong.data.documents import Fields
from megatron_ultralong.data.tokenizer import Tokenizer, torch_hidden
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    inputs._SHARD_BYTES, tokenize._ALONE_BYTES = 1 << 16, 0
    tokenizer = Tokenizer(Path(sys.argv[3]))
    tokenizer.check_fast = lambda recipe, sample: False  # the slower reference leaves time to be killed
    options = tokenize.TokenizeOptions(workers=2)
    with torch_hidden():
        tokenize.tokenize_corpus([Path(sys.argv[1])], Path(sys.argv[2]), tokenizer, Fields(), options)
"""


def test_a_killed_run_goes_on_from_its_finished_shards(tmp_path, tokenizer, tokenizer_folder):
    documents = [{"text": f"words {i} and more of {i % 97} " * 40} for i in range(2000)]
    path = write_lines(tmp_path / "in.jsonl", documents)
    tokenize_corpus([path], tmp_path / "whole", tokenizer, Fields())
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, tmp_path / "driver.py", path, tmp_path / "c", tokenizer_folder]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while len(list(tmp_path.glob("c.parts/*[!p]/part.json"))) < 4:
        assert run.poll() is None
        time.sleep(0.01)
    workers = children.read_text().split()
    run.kill()
    run.wait()
    assert not (tmp_path / "c.json").exists() and workers
    kept = {part: part.stat().st_mtime_ns for part in tmp_path.glob("c.parts/*[!p]/part.json")}
    assert 4 <= len(kept) < 40
    deadline = time.monotonic() + 20
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_running(pid) for pid in workers)
    again = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert again.returncode == 0 and f"{len(kept)} of " in again.stderr and "shards are done already" in again.stderr
    assert same_bytes(tmp_path / "whole", tmp_path / "c")
    assert not list(tmp_path.glob("*.parts"))


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_standard_input(tmp_path):
    tool = Path(__file__).parents[2] / "tools" / "preprocess_data.py"
    command = [sys.executable, tool, "--input", "-", "--output-prefix", tmp_path / "c", "--tokenizer-model", "bytes"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for text in ("ab", "xy"):
        content = json.dumps({"text": text}).encode() + b"\n"
        done = subprocess.run([*command, "--overwrite"], input=content, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert bytes(open_corpus(tmp_path / "c").tokens[0].tolist()).decode() == text
    (about,) = json.loads((tmp_path / "c.json").read_text())["inputs"]
    assert about == {"path": "-", "bytes": len(content), "fingerprint": None}


def test_two_runs_of_one_corpus(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", [{"text": "a"}])
    (tmp_path / "c.parts").mkdir()
    with (tmp_path / "c.parts" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"c\.parts: another run is writing this corpus; wait for its end"):
            tokenize_corpus([path], tmp_path / "c", load_tokenizer("bytes"), Fields())


def test_a_corpus_that_is_there(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", [{"text": "a"}])
    raw = load_tokenizer("bytes")
    manifest = tokenize_corpus([path], tmp_path / "c", raw, Fields())
    before = (tmp_path / "c.bin").stat().st_mtime_ns
    assert tokenize_corpus([path], tmp_path / "c", raw, Fields()) == manifest  # the same is asked for
    assert (tmp_path / "c.bin").stat().st_mtime_ns == before
    other = write_lines(tmp_path / "other.jsonl", [{"text": "bcd"}])
    with pytest.raises(UserError, match=r"c\.json: exists already; choose another --output-prefix, or add --overwrite"):
        tokenize_corpus([other], tmp_path / "c", raw, Fields())
    tokenize_corpus([other], tmp_path / "c", raw, Fields(), TokenizeOptions(overwrite=True))
    assert open_corpus(tmp_path / "c").tokens[0].tolist() == [98, 99, 100]


@pytest.mark.parametrize(("text", "value"), [("", None), ("0/1", (0, 1)), ("2/8", (2, 8))])
def test_shares(text, value):
    assert parse_shard(text) == value


@pytest.mark.parametrize("text", ["8/8", "1", "a/b", "-1/2", "1/0"])
def test_shares_that_are_none(text):
    with pytest.raises(UserError, match=f"--shard {text}: is not i/n with i from 0 to n - 1"):
        parse_shard(text)


def test_chats_with_their_masks(tmp_path, tokenizer):
    path = write_lines(tmp_path / "in.jsonl", [chat("a?", "b!"), chat("c?", "d e")])
    tokenize_corpus([path], tmp_path / "c", tokenizer, Fields())
    corpus = open_corpus(tmp_path / "c")
    assert corpus.kind == "chat" and corpus.loss_mask is not None
    marked = [corpus.tokens[i][corpus.loss_mask[i] == 1].tolist() for i in range(2)]
    assert [tokenizer.decode(ids) for ids in marked] == ["b!<|im_end|>", "d e<|im_end|>"]
    theirs = IndexedDataset(str(tmp_path / "c.loss_mask"))  # keep it: it unmaps its file when collected
    assert theirs[0].tolist() == corpus.loss_mask[0].tolist()


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


def test_an_input_is_never_overwritten(tmp_path, tokenizer):
    path = write_lines(tmp_path / "data.json", [{"text": "a"}])
    with pytest.raises(UserError, match=r"data\.json: the output would overwrite this input; choose another"):
        tokenize_corpus([path], tmp_path / "data", tokenizer, Fields())
    assert path.read_text() == '{"text": "a"}\n'


def test_a_corpus_whose_tokens_changed_is_refused(text_file, tmp_path, tokenizer):
    tokenize_corpus([text_file], tmp_path / "c", tokenizer, Fields())
    content = bytearray((tmp_path / "c.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "c.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.bin: is not the file that c\.json was written for"):
        open_corpus(tmp_path / "c")


def test_a_corpus_without_manifest_is_incomplete(text_file, tmp_path, tokenizer):
    tokenize_corpus([text_file], tmp_path / "c", tokenizer, Fields())
    (tmp_path / "c.json").unlink()
    with pytest.raises(UserError, match=r"c\.json: the corpus manifest is missing; write the tokens again"):
        open_corpus(tmp_path / "c")
