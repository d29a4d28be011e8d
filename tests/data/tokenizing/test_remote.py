"""Inputs by URL give what the same files on disk give, and whatever a store does wrong is one sentence.

Each store in turn: fsspec's memory, and S3 as moto's server speaks it (where s3fs and moto are: `make test-s3`).
"""

import gzip
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing import parts, remote, run, worker
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.parquet import read_rows
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from megatron_ultralong.data.tokenizing.streams import byte_blocks
from megatron_ultralong.data.tokenizing.urls import checked
from megatron_ultralong.data.tokenizing.walk import find_files
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.corpus_texts import iterate_texts, texts_fingerprint
from tests.data.conftest import same_bytes, write_lines

ROOT = Path(__file__).parents[3]
S3 = {"AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "password", "AWS_DEFAULT_REGION": "us-east-1"}
s3_alone = pytest.mark.parametrize("store", ["s3://"], indirect=True)  # a process has a memory:// of its own


@pytest.fixture(scope="module", params=["memory:///", "s3://"])
def store(request):
    """The URL of an empty place, and a function that puts bytes there, or with None takes them away."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "s3://":
            if not os.environ.get("REQUIRE_S3"):
                pytest.importorskip("s3fs", reason="make test-s3 installs it")
                pytest.importorskip("moto.server", reason="make test-s3 installs it")
            from moto.server import ThreadedMotoServer

            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            server.start()
            request.addfinalizer(server.stop)
            logging.getLogger("werkzeug").setLevel(logging.ERROR)
            for name, value in {**S3, "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port())}.items():
                patch.setenv(name, value)
        system = fsspec.filesystem(request.param.partition(":")[0], skip_instance_cache=True)
        system.mkdir(f"{request.param}bucket")

        def put(name, content):
            if content is None:
                system.rm(f"{request.param}bucket/{name}")
            else:
                system.pipe_file(f"{request.param}bucket/{name}", content)

        yield f"{request.param}bucket", put
        remote._system.cache_clear()
        fsspec.filesystem(request.param.partition(":")[0]).clear_instance_cache()


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", 3000)
    monkeypatch.setattr(remote, "BLOCK", 1500)
    monkeypatch.setattr(remote, "SMALL", 200)


def upload(folder, put, name="in"):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(f"{name}/{path.relative_to(folder)}", path.read_bytes())


def documents(count):
    return [{"text": f"document {i}: " + "word é " * (i % 40), "source": "ab"[i % 2]} for i in range(count)]


def make_inputs(folder):
    """Every format, in folders, with names that order otherwise by characters than by folders."""
    lines = write_lines(folder / "z.jsonl", documents(90)).read_bytes()
    (folder / "a").mkdir()
    (folder / "a" / "y.jsonl.gz").write_bytes(gzip.compress(lines) + gzip.compress(lines))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    (folder / "a-b").mkdir()
    (folder / "a-b" / "array.json").write_text(json.dumps(documents(5)))
    (folder / "a-b" / "lines.json").write_bytes(lines)
    (folder / "book.txt").write_text("a text, é, of a book\n" * 400, encoding="utf-8")
    (folder / "empty.jsonl").touch()
    table = pyarrow.table({name: [each[name] for each in documents(90)] for name in ("text", "source")})
    pyarrow.parquet.write_table(table, folder / "p.parquet", row_group_size=11)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.jsonl").write_bytes(b"no JSON")
    (folder / "a" / ".x.jsonl").write_bytes(b"no JSON")
    (folder / "notes.csv").write_text("nothing")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("inputs") / "in"
    folder.mkdir()
    make_inputs(folder)
    upload(folder, store[1])
    return folder, f"{store[0]}/in"


@pytest.mark.parametrize(
    "names", [["."], ["*.jsonl"], ["**/*.jsonl*", "p.parquet"], ["[ab]*"], ["a", "p.parquet", "z.jsonl"], ["book.txt"]]
)
def test_the_same_bytes_as_from_files(tmp_path, inputs, small_shards, caplog, names):
    """Of every format, whole and in ranges, in the same order and with the same sources."""
    caplog.set_level(logging.INFO)
    local, url = inputs
    raw, said, made = load_tokenizer("bytes"), [], []
    for root, name in ((str(local), "files"), (url, "urls")):
        caplog.clear()
        places = [root if each == "." else f"{root}/{each}" for each in names]
        made.append(tokenize_corpus(places, tmp_path / name, raw, Fields()))
        said.append([r.getMessage().replace(root, "") for r in caplog.records if r.getMessage().startswith("input: ")])
    assert said[0] == said[1] and made[0]["sources"] == made[1]["sources"] and made[1]["shards"] == made[0]["shards"]
    assert same_bytes(tmp_path / "files", tmp_path / "urls")
    rows = [line.split("\t") for line in (tmp_path / "urls.inputs.tsv").read_text().splitlines()]
    own = [line.split("\t") for line in (tmp_path / "files.inputs.tsv").read_text().splitlines()]
    assert [size for _, size, _ in rows] == [size for _, size, _ in own] and all(known for known, *_ in rows)
    assert [path.removeprefix(url).lstrip("/") for *_, path in rows] == [os.path.relpath(p, local) for *_, p in own]


@s3_alone
def test_worker_processes_share_the_work(tmp_path, inputs, small_shards, tokenizer, monkeypatch):
    """Two spawned ones, which open the store themselves."""
    local, url = inputs
    monkeypatch.setattr(run, "_ALONE_BYTES", 0)
    for root, name in ((str(local), "files"), (url, "urls")):
        tokenize_corpus([f"{root}/*.jsonl"], tmp_path / name, tokenizer, Fields(), TokenizeOptions(workers=2))
    assert same_bytes(tmp_path / "files", tmp_path / "urls")


def test_array_tasks_and_their_merge(tmp_path, inputs, small_shards, monkeypatch):
    """Footers are read once for all; a task finds the parts of the others, from whatever folder it is started."""
    local, url = inputs
    raw, read, row_group_bytes = load_tokenizer("bytes"), [], parts_reader()
    monkeypatch.setattr(
        "megatron_ultralong.data.tokenizing.parquet.row_group_bytes",
        lambda path: read.append(path) or row_group_bytes(path),
    )
    tokenize_corpus([local / "p.parquet", local / "z.jsonl"], tmp_path / "files", raw, Fields())
    read.clear()
    names = [f"{url}/p.parquet", f"{url}/z.jsonl"]
    for i in range(3):
        monkeypatch.chdir(tmp_path if i else "/")
        tokenize_corpus(names, tmp_path / "urls", raw, Fields(), TokenizeOptions(shard=(i, 3)))
    assert read == names[:1]
    monkeypatch.setattr(run, "run_alone", None)  # nothing is left to do but to merge
    tokenize_corpus(names, tmp_path / "urls", raw, Fields())
    assert same_bytes(tmp_path / "files", tmp_path / "urls")


def parts_reader():
    from megatron_ultralong.data.tokenizing import parquet

    return parquet.row_group_bytes


CHANGES = {
    "gone": (lambda content: None, "vanished"),
    "other": (lambda content: content.replace(b"document 1", b"document 7"), "changed while the corpus was made"),
    "short": (lambda content: content[:200], r"changed while the corpus was made \(it had \d+ bytes and has 200\)"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_an_object_that_changes_is_one_sentence(tmp_path, store, small_shards, monkeypatch, change, when):
    """Between planning and reading, while it is read, once its part is made; also if its size stays the same."""
    url, put = store
    content, (changed, sentence) = write_lines(tmp_path / "x.jsonl", documents(60)).read_bytes(), CHANGES[change]
    put("change/x.jsonl", content)
    owner, method = {
        "before": (worker.Worker, "run"),
        "during": (parts.PartWriter, "add"),
        "after": (run, "finished"),
    }[when]
    original, left = getattr(owner, method), [1]

    def changing(*arguments):
        if left:
            left.pop()
            put("change/x.jsonl", changed(content))
        return original(*arguments)

    monkeypatch.setattr(owner, method, changing)
    raw = load_tokenizer("bytes")
    with pytest.raises(UserError, match=rf"/change/x\.jsonl: {sentence}"):
        tokenize_corpus([f"{url}/change/x.jsonl"], tmp_path / "c", raw, Fields())
    monkeypatch.undo()
    assert not (tmp_path / "c.json").exists()
    put("change/x.jsonl", content)
    assert tokenize_corpus([f"{url}/change/x.jsonl"], tmp_path / "c", raw, Fields())["documents"] == 60


def test_an_object_of_other_content_is_made_anew(tmp_path, store, small_shards):
    """Its etag tells, though its size is the same: neither a finished part nor a finished corpus is taken for it."""
    url, put = store
    content, raw = write_lines(tmp_path / "x.jsonl", documents(60)).read_bytes(), load_tokenizer("bytes")
    name = [f"{url}/anew/x.jsonl"]
    put("anew/x.jsonl", content)
    tokenize_corpus(name, tmp_path / "c", raw, Fields(), TokenizeOptions(shard=(0, 2)))
    other = content.replace(b"document 2", b"document 8")
    (tmp_path / "other.jsonl").write_bytes(other)
    put("anew/x.jsonl", other)
    tokenize_corpus(name, tmp_path / "c", raw, Fields())
    tokenize_corpus([tmp_path / "other.jsonl"], tmp_path / "files", raw, Fields())
    assert same_bytes(tmp_path / "files", tmp_path / "c")
    tokenize_corpus(name, tmp_path / "c", raw, Fields())  # is there already
    put("anew/x.jsonl", content)
    with pytest.raises(UserError, match=r"c\.json: exists already \(of other files"):
        tokenize_corpus(name, tmp_path / "c", raw, Fields())


@pytest.mark.parametrize("name", ["nothing.jsonl", "no/folder", "*.nothing", "../none/x.jsonl"])
def test_what_is_not_there_is_one_sentence(store, name):
    url = f"{store[0]}/{name}".replace("bucket/../", "")
    with pytest.raises(UserError, match=r": names no object, folder or match; name an input that exists\.$"):
        find_files([url])


def test_what_the_walk_refuses(store):
    url, put = store
    put("walk/x.csv", b"")
    put("walk/x.parquet.gz", b"")
    with pytest.raises(UserError, match=r"/walk/x\.csv: its ending does not say what is in it"):
        find_files([f"{url}/walk/x.csv"])
    with pytest.raises(UserError, match=r"/walk/x\.parquet\.gz: Parquet compresses itself"):
        find_files([f"{url}/walk/x.parquet.gz"], "parquet")
    put("walk/in/x.jsonl", b"")
    with pytest.raises(UserError, match=r"/walk/in/x\.jsonl: is named twice; name it once"):
        find_files([f"{url}/walk/in", f"{url}/walk/in/*"])
    put("walk/none/x.csv", b"")
    with pytest.raises(UserError, match=r"/walk/none: none of its 1 files ends in \.jsonl"):
        find_files([f"{url}/walk/none/"])


def test_malformed_documents_are_named_and_skipped(tmp_path, store, small_shards):
    url, put = store
    lines = write_lines(tmp_path / "x.jsonl", documents(120)).read_bytes().splitlines(keepends=True)
    lines[100] = b"{no JSON\n"
    put("bad/x.jsonl", b"".join(lines))
    raw = load_tokenizer("bytes")
    with pytest.raises(UserError, match=r"/bad/x\.jsonl, line 101: is not JSON"):
        tokenize_corpus([f"{url}/bad/x.jsonl"], tmp_path / "c", raw, Fields())
    tokenize_corpus([f"{url}/bad/x.jsonl"], tmp_path / "c", raw, Fields(), TokenizeOptions(malformed="skip"))
    assert (tmp_path / "c.skipped.tsv").read_text().startswith(f"{find_files([f'{url}/bad'])[0].path}, line 101\t")
    put("bad/x.jsonl.gz", gzip.compress(b"".join(lines))[:-20])
    with pytest.raises(UserError, match=r"/bad/x\.jsonl\.gz, line \d+: is (truncated|not JSON)"):
        tokenize_corpus([f"{url}/bad/x.jsonl.gz"], tmp_path / "d", raw, Fields())
    put("bad/x.parquet", b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"/bad/x\.parquet: cannot be read as Parquet"):
        tokenize_corpus([f"{url}/bad/x.parquet"], tmp_path / "d", raw, Fields())


def test_evaluation_reads_urls(inputs):
    local, url = inputs
    assert list(iterate_texts(f"{url}/a")) == list(iterate_texts(local / "a")) != []
    assert texts_fingerprint(f"{url}/a") == texts_fingerprint(f"{url}/a/*") != texts_fingerprint(f"{url}/z.jsonl")


@s3_alone
def test_only_what_is_asked_for_is_read(store, small_shards, monkeypatch):
    """A range takes its bytes and no more; of Parquet the columns and row groups that are asked for."""
    url, put = store
    content, asked = os.urandom(10_000), []
    put("some/x.jsonl", content)
    opened = remote.opened

    def watched(*arguments):
        reader = opened(*arguments)
        fetch = reader._file.cache.fetcher
        reader._file.cache.fetcher = lambda begin, end: asked.append((begin, end)) or fetch(begin, end)
        return reader

    monkeypatch.setattr(remote, "opened", watched)
    assert b"".join(byte_blocks(f"{url}/some/x.jsonl", 2000, 5000, block=700)) == content[2000:5000]
    assert asked[0][0] == 2000 and asked[-1][1] == 5000 and sum(end - begin for begin, end in asked) == 3000
    table = pyarrow.table({"text": [f"{i}" * 50 for i in range(999)], "other": [os.urandom(100) for _ in range(999)]})
    pyarrow.parquet.write_table(table, sink := pyarrow.BufferOutputStream(), row_group_size=333)
    put("some/x.parquet", sink.getvalue().to_pybytes())
    asked.clear()
    rows = [row for block in read_rows(f"{url}/some/x.parquet", 1, 2, Fields()) for row in block]
    assert [row["text"] for row in rows] == [f"{i}" * 50 for i in range(333, 666)]
    footer = max(asked, key=lambda each: each[1])
    assert sum(end - begin for begin, end in asked if (begin, end) != footer) < 30_000 < len(sink.getvalue()) / 3


DRIVER = """
import sys
from pathlib import Path
from megatron_ultralong.cli import exit_status
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing import run, shards, worker
from megatron_ultralong.data.tokenizing.documents import Fields
import time

class Slow(worker.Worker):
    def run(self, shard, folder):
        time.sleep(0.1)
        return super().run(shard, folder)

worker.Worker = Slow
if __name__ == "__main__":
    shards._SHARD_BYTES = 3000
    with exit_status():
        run.tokenize_corpus([sys.argv[1]], Path(sys.argv[2]), load_tokenizer("bytes"), Fields())
"""


@s3_alone
def test_a_killed_run_goes_on_from_its_finished_shards(tmp_path, store):
    """A process of its own; then credentials that are refused, by the command, in one sentence and status 2."""
    url, put = store
    path = write_lines(tmp_path / "x.jsonl", documents(600))
    put("kill/x.jsonl", path.read_bytes())
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, tmp_path / "driver.py", f"{url}/kill/*.jsonl", tmp_path / "c"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(tmp_path.glob("c.parts/*[!p]/part.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = len(list(tmp_path.glob("c.parts/*[!p]/part.json")))
    assert 3 <= kept < 20
    again = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert again.returncode == 0 and f"{kept} of " in again.stderr and "shards are done already" in again.stderr
    tokenize_corpus([path], tmp_path / "files", load_tokenizer("bytes"), Fields())
    assert same_bytes(tmp_path / "files", tmp_path / "c") and not list(tmp_path.glob("*.parts"))
    tool = [sys.executable, ROOT / "tools" / "preprocess_data.py", "--tokenizer-model", "bytes"]
    tool += ["--input", f"{url}/kill/x.jsonl", "--output-prefix", tmp_path / "d"]
    nobody = {name: value for name, value in environment.items() if "KEY" not in name} | {
        "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    done = subprocess.run(tool, env=nobody, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{url}/kill/x.jsonl: may not be read (Unable to locate credentials); give credentials" in done.stderr


SECRETS = [
    "s3://name:password@bucket/x.jsonl",
    "s3://name:pass/word@bucket/x.jsonl",
    "https://name:password@host/x.jsonl",
    "https://name@host:80/x.jsonl",
    "https://host/x.jsonl?X-Amz-Signature=password",
    "gs://bucket/x.jsonl?Signature=password",
]


@pytest.mark.parametrize("url", SECRETS)
def test_urls_with_secrets_are_refused_and_not_repeated(tmp_path, url):
    with pytest.raises(UserError, match=r"^input (s3|gs|https)://\.\.\.x\.jsonl: a URL with a name, a pass") as refused:
        tokenize_corpus([url], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert "word@" not in str(refused.value) and "name:" not in str(refused.value) and "=" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("s3://bucket/year=2024/part-?.jsonl", "s3://bucket/year=2024/part-?.jsonl"),
        ("S3://arn:aws:s3:us-west-2:1:accesspoint/a/x", "s3://arn:aws:s3:us-west-2:1:accesspoint/a/x"),
        ("hf://datasets/a/b@v1/x.parquet", "hf://datasets/a/b@v1/x.parquet"),
        ("http://host:8000/a:b@c/x.jsonl", "http://host:8000/a:b@c/x.jsonl"),
        ("file:///a%20b/x.jsonl", "/a b/x.jsonl"),
    ],
)
def test_urls_without_secrets_are_not(url, read):
    assert checked(url) == read


def test_urls_that_cannot_be(tmp_path, text_file, monkeypatch):
    raw = load_tokenizer("bytes")
    assert tokenize_corpus([f"file://{text_file}"], tmp_path / "c", raw, Fields())["documents"] == 9
    assert open_corpus(tmp_path / "c").prefix == tmp_path / "c"
    with pytest.raises(UserError, match=r"^input ftp://\.\.\.: there is no way to read this scheme \(known: s3://, "):
        tokenize_corpus(["ftp://host/x.jsonl"], tmp_path / "d", raw, Fields())
    with pytest.raises(UserError, match=r"^--output-prefix s3://\.\.\.: only local files are written; give a path"):
        tokenize_corpus([text_file], Path("s3://bucket/c"), raw, Fields())
    assert not Path("s3:").exists()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"^input gs://\.\.\.: needs gcsfs to be read; pip install gcsfs\.$"):
        find_files(["gs://bucket/x.jsonl"])
