"""Runs side by side, inputs that change under them, and the limit of sources over all of them."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing import parquet, parts, parts_folder, run, worker
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.parts_folder import held
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from megatron_ultralong.errors import UserError
from tests.data.conftest import same_bytes, write_lines

ROOT = Path(__file__).parents[3]
SLOW_TASK = """
import sys, time
from pathlib import Path
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing import worker
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus

def run_later(self, shard, folder, run=worker.Worker.run):
    Path(sys.argv[3], "begun").touch()
    while not Path(sys.argv[3], "go").exists():
        time.sleep(0.01)
    return run(self, shard, folder)

worker.Worker.run = run_later
tokenize_corpus([sys.argv[1]], Path(sys.argv[2]), load_tokenizer("bytes"), Fields(), TokenizeOptions(shard=(0, 2)))
"""


def test_a_task_with_nothing_to_do_leaves_the_folder_to_the_others(tmp_path):
    """Two real processes: the second has no shard, and ends while the first is at work; so does one that fails."""
    path = write_lines(tmp_path / "in.jsonl", [{"text": "a"}])
    tool = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(path)]
    tool += ["--output-prefix", str(tmp_path / "c"), "--tokenizer-model", "bytes"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([sys.executable, "-c", SLOW_TASK, path, tmp_path / "c", tmp_path], env=environment)
    while not (tmp_path / "begun").exists():
        assert first.poll() is None
        time.sleep(0.01)
    lock = (tmp_path / "c.parts" / "lock").stat()
    second = subprocess.run([*tool, "--shard", "1/2"], env=environment, capture_output=True, text=True)
    assert second.returncode == 0 and "1 of 1 shards are left" in second.stderr
    assert os.path.samestat(lock, (tmp_path / "c.parts" / "lock").stat())
    alone = subprocess.run(tool, env=environment, capture_output=True, text=True)
    assert alone.returncode == 2 and "c.parts: another run is writing this corpus" in alone.stderr
    (tmp_path / "go").touch()
    assert first.wait() == 0 and len(list(tmp_path.glob("c.parts/*/part.json"))) == 1
    last = subprocess.run(tool, env=environment, capture_output=True, text=True)
    assert last.returncode == 0 and "1 of 1 shards are done already" in last.stderr
    assert open_corpus(tmp_path / "c").tokens[0].tolist() == [97] and not (tmp_path / "c.parts").exists()


@pytest.mark.parametrize("when", ["opened", "locked"])
def test_a_folder_that_is_removed_while_it_is_locked_is_made_again(tmp_path, monkeypatch, when):
    """The lock that is held is the one that others find."""
    lock, flock, left = tmp_path / "c.parts" / "lock", fcntl.flock, [1]

    def removing(file, operation):
        flock(file, operation)
        if left:
            left.pop()
            lock.unlink()
            if when == "opened":
                lock.parent.rmdir()
            else:
                lock.touch()

    monkeypatch.setattr(parts_folder.fcntl, "flock", removing)
    with held(lock.parent, shared=True):
        monkeypatch.undo()
        assert lock.exists() and not left
        with pytest.raises(UserError, match="another run is writing"), held(lock.parent, shared=False):
            pass


def test_footers_are_read_once_for_all_array_tasks(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(5):
        pyarrow.parquet.write_table(pyarrow.table({"text": [f"a{i}", "b"]}), folder / f"{i}.parquet", row_group_size=1)
    read, row_group_bytes = [], parquet.row_group_bytes
    monkeypatch.setattr(parquet, "row_group_bytes", lambda path: read.append(path) or row_group_bytes(path))
    raw = load_tokenizer("bytes")
    tokenize_corpus([folder], tmp_path / "whole", raw, Fields())
    assert len(read) == 5
    for i in range(3):
        tokenize_corpus([folder], tmp_path / "c", raw, Fields(), TokenizeOptions(shard=(i, 3)))
    assert len(read) == 10
    pyarrow.parquet.write_table(pyarrow.table({"text": ["other", "c"]}), folder / "2.parquet")
    tokenize_corpus([folder], tmp_path / "c", raw, Fields())
    assert len(read) == 11 and not same_bytes(tmp_path / "whole", tmp_path / "c")
    tokens = open_corpus(tmp_path / "c").tokens
    assert [bytes(tokens[i].tolist()) for i in range(4, 6)] == [b"other", b"c"]


CHANGES = {
    "gone": (lambda path: path.unlink(), "vanished while the corpus was made; put it back, or run again without it"),
    "short": (lambda path: os.truncate(path, 3), r"changed while the corpus was made \(it had \d+ bytes and has 3\)"),
    "later": (lambda path: os.utime(path, (1, 1)), "changed while the corpus was made"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("name", ["b.jsonl", "b.json", "b.txt", "b.parquet"])
def test_an_input_that_changes_is_one_sentence(tmp_path, monkeypatch, change, when, name):
    """Between planning and reading, while it is read, and once its part is made; then the next run is right."""
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    path = tmp_path / name
    if name == "b.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["b"]}), path)
    else:
        path.write_text('{"text": "b"}\n')
    content, (action, sentence) = path.read_bytes(), CHANGES[change]
    owner, method = {
        "before": (worker.Worker, "run"),
        "during": (parts.PartWriter, "add"),
        "after": (run, "finished"),
    }[when]
    original = getattr(owner, method)

    def changing(*arguments):
        done = original(*arguments)
        if path.exists() and path.stat().st_mtime_ns != 10**9:
            action(path)
        return done

    def changed(*arguments):
        if path.exists():
            action(path)
        return original(*arguments)

    monkeypatch.setattr(owner, method, changed if when == "before" else changing)
    inputs, raw = [path, tmp_path / "a.jsonl"], load_tokenizer("bytes")
    with pytest.raises(UserError, match=rf"{name}: {sentence}"):
        tokenize_corpus(inputs, tmp_path / "c", raw, Fields())
    monkeypatch.undo()
    assert not (tmp_path / "c.json").exists()
    path.write_bytes(content)
    assert tokenize_corpus(inputs, tmp_path / "c", raw, Fields())["documents"] == 2


@pytest.fixture
def few_sources(monkeypatch):
    """At most three sources, and a shard for every document of `sourced`."""
    monkeypatch.setattr(parts, "_MOST_SOURCES", 3)
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", len('{"text": "t", "source": "a"}\n'))


def sourced(path, names):
    return write_lines(path, [{"text": "t", "source": name} for name in names])


def test_the_limit_of_sources_counts_the_corpus(tmp_path, few_sources):
    raw = load_tokenizer("bytes")
    assert tokenize_corpus([sourced(tmp_path / "a.jsonl", "abcabc")], tmp_path / "a", raw, Fields())["documents"] == 6
    path = sourced(tmp_path / "b.jsonl", "aabbccddeeff")
    with pytest.raises(UserError, match=r"more than 3 sources, such as 'a'; name a field with fewer .* --source\."):
        tokenize_corpus([path], tmp_path / "b", raw, Fields())
    assert len(list(tmp_path.glob("b.parts/*/part.json"))) == 7  # found with the fourth source
    assert tokenize_corpus([path], tmp_path / "c", raw, Fields(), TokenizeOptions(source="one"))["documents"] == 12


def test_array_tasks_see_each_others_sources(tmp_path, few_sources):
    path, raw = sourced(tmp_path / "a.jsonl", "abcd"), load_tokenizer("bytes")
    for i in range(3):
        tokenize_corpus([path], tmp_path / "c", raw, Fields(), TokenizeOptions(shard=(i, 4)))
    for shard in ((3, 4), (0, 4), None):
        with pytest.raises(UserError, match="more than 3 sources"):
            tokenize_corpus([path], tmp_path / "c", raw, Fields(), TokenizeOptions(shard=shard))


def test_too_many_text_files_are_found_before_any_work(tmp_path, few_sources):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("t")
    with pytest.raises(UserError, match="more than 3 sources, such as '0'"):
        tokenize_corpus([f"{tmp_path}/*.txt"], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert not (tmp_path / "c.parts").exists()
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(4):
        (tmp_path / f"{i}.txt").rename(folder / f"{i}.txt")
    assert tokenize_corpus([folder], tmp_path / "c", load_tokenizer("bytes"), Fields())["sources"] == ["folder"]


def test_the_manifest_does_not_grow_with_the_files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(2100):
        (folder / f"{i:04}.txt").write_text("t")
    manifest = tokenize_corpus([folder], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert manifest["inputs"] == 2100 and manifest["shards"] == 3  # of at most 1,024 files each
    assert (tmp_path / "c.json").stat().st_size < 1500
    assert json.loads((tmp_path / "c.json").read_text()) == manifest
    assert len((tmp_path / "c.inputs.tsv").read_text().splitlines()) == 2100
