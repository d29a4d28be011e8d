"""Inputs from a web server: by ranges, tried again where a line is cut, and one sentence for what cannot be mended."""

import gzip
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing import remote
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.parts import PartWriter
from megatron_ultralong.data.tokenizing.run import tokenize_corpus
from megatron_ultralong.errors import UserError
from tests.data.conftest import same_bytes, write_lines

pytest.importorskip("aiohttp")


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files`, by ranges; `cuts` more answers end in their middle."""

    protocol_version = "HTTP/1.1"
    cuts, ranges, etag = 0, True, '"one"'

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        own = type(self)
        content = own.files.get(self.path)
        status = own.statuses.get(self.path, 404 if content is None else 200)
        if status != 200:
            return self.send_error(status)
        asked = self.headers.get("Range") if own.ranges else None
        if asked:
            begin, end = (int(each) for each in asked.removeprefix("bytes=").split("-"))
            own.asked.append((begin, end + 1))
            total, content, status = len(content), content[begin : end + 1], 206
        self.send_response(status)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end}/{total}")
        self.send_header("ETag", own.etag)
        if self.path != "/endless.txt":
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if body:
            if own.cuts and content:
                own.cuts -= 1
                content = content[: len(content) // 2]
            self.wfile.write(content)


class _Large:
    """300 MB of lines that nobody holds."""

    LINE = b'{"text": "' + b"word " * 200 + b'"}\n'
    LINES = 300_000_000 // len(LINE)

    def __len__(self):
        return len(self.LINE) * self.LINES

    def __getitem__(self, part):
        before = part.start // len(self.LINE)
        lines = self.LINE * (part.stop // len(self.LINE) - before + 1)
        return lines[part.start - before * len(self.LINE) :][: min(part.stop, len(self)) - part.start]


@pytest.fixture
def web(monkeypatch):
    handler = type("Handler", (_Handler,), {"files": {}, "statuses": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(remote, "BLOCK", 700)
    monkeypatch.setattr(remote, "SMALL", 100)
    monkeypatch.setattr(remote, "_WEB_WAITS", (0.01, 0.01))
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", 1500)
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def lines(tmp_path):
    return write_lines(tmp_path / "x.jsonl", [{"text": f"document {i} " * (i % 9)} for i in range(80)])


def made(inputs, prefix):
    return tokenize_corpus(inputs, prefix, load_tokenizer("bytes"), Fields())


def test_the_same_bytes_as_from_files(tmp_path, web, lines):
    handler, url = web
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "x.txt").write_bytes(b"text " * 999)
    names = ["x.jsonl", "x.jsonl.gz", "x.txt"]
    handler.files |= {f"/{name}": (tmp_path / name).read_bytes() for name in names}
    made([tmp_path / name for name in names], tmp_path / "files")
    handler.cuts = 2
    made([f"{url}/{name}" for name in names], tmp_path / "urls")
    assert same_bytes(tmp_path / "files", tmp_path / "urls") and handler.cuts == 0
    assert len(handler.asked) > 8
    assert (tmp_path / "urls.inputs.tsv").read_text().startswith(f"one\t{len(lines.read_bytes())}\t{url}/x.jsonl\n")


def test_a_line_that_stays_cut_is_one_sentence_and_finished_shards_are_kept(tmp_path, web, lines, monkeypatch):
    handler, url = web
    handler.files["/x.jsonl"] = lines.read_bytes()
    finish, finished = PartWriter.finish, []

    def cut(writer):
        finished.append(writer)
        handler.cuts = 1000 if len(finished) == 2 else 0
        return finish(writer)

    monkeypatch.setattr(PartWriter, "finish", cut)
    with pytest.raises(UserError, match=rf"^{url}/x\.jsonl: cannot be read \(.*\); run again"):
        made([f"{url}/x.jsonl"], tmp_path / "c")
    assert len(list(tmp_path.glob("c.parts/*/part.json"))) == 2
    handler.cuts = 0
    monkeypatch.setattr(PartWriter, "finish", finish)
    made([f"{url}/x.jsonl"], tmp_path / "c")
    made([lines], tmp_path / "files")
    assert same_bytes(tmp_path / "files", tmp_path / "c")


def test_a_server_without_ranges(tmp_path, web, lines):
    """What is read from its beginning in one piece can be; what is cut cannot."""
    handler, url = web
    handler.ranges = False
    handler.files |= {"/x.jsonl": lines.read_bytes(), "/y.jsonl": lines.read_bytes()[:600]}
    with pytest.raises(UserError, match=rf"^{url}/x\.jsonl: cannot be read \(.*range requests.*; run again"):
        made([f"{url}/x.jsonl"], tmp_path / "c")


def test_what_a_web_server_does_not_give_is_one_sentence(tmp_path, web):
    handler, url = web
    handler.files |= {"/endless.txt": b"text", "/x.txt": b"text"}
    handler.statuses |= {"/secret.txt": 403, "/ill.txt": 500}
    for name, sentence in {
        "none.txt": "names no object, folder or match; name an input that exists",
        "secret.txt": r"may not be read \(403, .*Forbidden.*\); give credentials by the environment",
        "ill.txt": r"cannot be read \(500, .*; run again",
        "endless.txt": "its server does not tell its size; fetch the file and name it by its path",
        "*.txt": "a web server has no list of its files; name each",
        "": "its ending does not say what is in it",
    }.items():
        handler.files["/"] = b"<html></html>"
        with pytest.raises(UserError, match=rf": {sentence}"):
            made([f"{url}/{name}"], tmp_path / "c")
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:9/x\.txt: cannot be read \(Cannot connect"):
        made(["http://127.0.0.1:9/x.txt"], tmp_path / "c")
    made([f"{url}/x.txt"], tmp_path / "c")
    handler.etag = '"two"'
    with pytest.raises(UserError, match=r"c\.json: exists already \(of other files"):
        made([f"{url}/x.txt"], tmp_path / "c")


READ_ALL = """
import resource, sys
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.readers import Reading, read_range
from megatron_ultralong.data.tokenizing.walk import find_files

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

(piece,) = find_files([sys.argv[1]])
before, found = peak(), 0
for batch in read_range(piece, Reading(Fields(), "text"), print, lambda size: None):
    found += len(batch.texts)
print(found, peak() - before)
"""


@pytest.mark.slow
def test_a_large_object_is_never_held(web):
    """300 MB in one piece: fetched blocks, a batch and its texts."""
    handler, url = web
    handler.files["/large.jsonl"] = _Large()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", READ_ALL, f"{url}/large.jsonl"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found, growth = map(int, done.stdout.split())
    assert found == _Large.LINES and growth < 64 << 10, growth  # KiB
    assert max(end - begin for begin, end in handler.asked) <= 2 * (4 << 20)
