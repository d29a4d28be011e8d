"""Runs that were stopped, shared out or given again, and corpora that are there already."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.tokenizer.identity import library_versions, template_fingerprint
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, parse_shard, tokenize_corpus
from megatron_ultralong.errors import UserError
from tests.data.conftest import same_bytes, write_lines


def test_shares_of_a_corpus_and_their_merge(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", 100)
    path = write_lines(tmp_path / "in.jsonl", [{"text": f"document {i}"} for i in range(50)])
    raw = load_tokenizer("bytes")
    tokenize_corpus([path], tmp_path / "whole", raw, Fields())
    for i in range(3):
        assert tokenize_corpus([path], tmp_path / "c", raw, Fields(), TokenizeOptions(shard=(i, 3))) is None
    assert not (tmp_path / "c.bin").exists()
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.run.run_alone", None)  # nothing is left to do but to merge
    tokenize_corpus([path], tmp_path / "c", raw, Fields())
    assert same_bytes(tmp_path / "whole", tmp_path / "c") and not list(tmp_path.glob("*.parts"))


DRIVER = """
import logging, sys
from pathlib import Path
from megatron_ultralong.data.tokenizing import shards
from megatron_ultralong.data.tokenizing import run
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer, torch_hidden
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    shards._SHARD_BYTES, run._ALONE_BYTES = 1 << 16, 0
    tokenizer = Tokenizer(Path(sys.argv[3]))
    tokenizer.check_fast = lambda recipe, sample: False  # the slower reference leaves time to be killed
    options = run.TokenizeOptions(workers=2)
    with torch_hidden():
        run.tokenize_corpus([Path(sys.argv[1])], Path(sys.argv[2]), tokenizer, Fields(), options)
"""


def test_a_killed_run_goes_on_from_its_finished_shards(tmp_path, tokenizer, tokenizer_folder):
    documents = [{"text": f"words {i} and more of {i % 97} " * 40} for i in range(2000)]
    path = write_lines(tmp_path / "in.jsonl", documents)
    tokenize_corpus([path], tmp_path / "whole", tokenizer, Fields())
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, tmp_path / "driver.py", path, tmp_path / "c", tokenizer_folder]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
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
    with pytest.raises(
        UserError, match=r"c\.json: exists already \([^)]+\); choose another --output-prefix, or add --overwrite"
    ):
        tokenize_corpus([other], tmp_path / "c", raw, Fields())
    tokenize_corpus([other], tmp_path / "c", raw, Fields(), TokenizeOptions(overwrite=True))
    assert open_corpus(tmp_path / "c").tokens[0].tolist() == [98, 99, 100]


def _edit(folder, **entries):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


MESSAGES = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b!"}]}
OTHER = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("document", "change", "is_another"),
    [
        ({"text": "a"}, {"eos_token": "<|endoftext|>"}, True),
        ({"text": "a"}, {"additional_special_tokens": ["<|im_start|>", "<new>"]}, True),
        ({"text": "a"}, {"split_special_tokens": True}, True),
        ({"text": "a"}, {"chat_template": OTHER}, False),
        (MESSAGES, {"chat_template": OTHER}, True),
        (MESSAGES, {"model_max_length": 5}, False),
    ],
)
def test_a_corpus_that_another_tokenizer_made(tmp_path, tokenizer_folder, document, change, is_another):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    path = write_lines(tmp_path / "in.jsonl", [document])
    made = tokenize_corpus([path], tmp_path / "c", load_tokenizer(folder), Fields())
    assert set(made["versions"]) >= {"transformers", "tokenizers", "gigatoken"}
    assert (made["template_fingerprint"] is None) == ("text" in document)
    _edit(folder, **change)
    if is_another:
        with pytest.raises(UserError, match=r"c\.json: exists already \([^)]+\); choose another"):
            tokenize_corpus([path], tmp_path / "c", load_tokenizer(folder), Fields())
    else:
        assert tokenize_corpus([path], tmp_path / "c", load_tokenizer(folder), Fields()) == made


def test_shares_of_two_templates_are_not_mixed(tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", 100)
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    path = write_lines(tmp_path / "in.jsonl", [MESSAGES] * 6)
    tokenize_corpus([path], tmp_path / "c", load_tokenizer(folder), Fields(), TokenizeOptions(shard=(0, 2)))
    _edit(folder, chat_template=OTHER)
    tokenize_corpus([path], tmp_path / "c", load_tokenizer(folder), Fields(), TokenizeOptions(shard=(1, 2)))
    tokenize_corpus([path], tmp_path / "c", load_tokenizer(folder), Fields())
    tokenize_corpus([path], tmp_path / "whole", load_tokenizer(folder), Fields())
    assert same_bytes(tmp_path / "whole", tmp_path / "c")
    assert open_corpus(tmp_path / "c").template_fingerprint == template_fingerprint(folder)


def test_other_versions_of_the_libraries(tmp_path, tokenizer_folder, monkeypatch):
    """A finished corpus stays if the pipeline is the same; chats, and what another pipeline made, do not."""
    texts, chats = write_lines(tmp_path / "t.jsonl", [{"text": "a"}]), write_lines(tmp_path / "c.jsonl", [MESSAGES])
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    for path in (texts, chats):
        tokenize_corpus([path], tmp_path / path.stem, load_tokenizer(folder), Fields())
    versions = library_versions() | {"transformers": "99.0"}
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.existing.library_versions", lambda: versions)
    assert tokenize_corpus([texts], tmp_path / "t", load_tokenizer(folder), Fields())["documents"] == 1
    with pytest.raises(
        UserError, match=r"c\.json: exists already \(made by transformers .* and tokenizers .*\); choose"
    ):
        tokenize_corpus([chats], tmp_path / "c", load_tokenizer(folder), Fields())
    manifest = json.loads((tmp_path / "t.json").read_text()) | {"backend_fingerprint": "another"}
    (tmp_path / "t.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"t\.json: exists already \(made by transformers"):
        tokenize_corpus([texts], tmp_path / "t", load_tokenizer(folder), Fields())


@pytest.mark.parametrize(("text", "value"), [("", None), ("0/1", (0, 1)), ("2/8", (2, 8))])
def test_shares(text, value):
    assert parse_shard(text) == value


@pytest.mark.parametrize("text", ["8/8", "1", "a/b", "-1/2", "1/0"])
def test_shares_that_are_none(text):
    with pytest.raises(UserError, match=f"--shard {text}: is not i/n with i from 0 to n - 1"):
        parse_shard(text)


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


@pytest.mark.parametrize(
    ("change", "complaint"),
    [(lambda manifest: {**manifest, "version": 0}, "has version 0, not 2"), (lambda manifest: [1], "has version None")]
    + [
        (lambda manifest: {"version": 2}, "lacks 'kind', as no manifest does that a tool wrote; write the tokens again")
    ],
)
def test_a_manifest_edited_by_hand_is_refused(text_file, tmp_path, tokenizer, change, complaint):
    tokenize_corpus([text_file], tmp_path / "c", tokenizer, Fields())
    manifest = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(change(manifest)))
    with pytest.raises(UserError, match=complaint):
        open_corpus(tmp_path / "c")
