import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.commands import make_parts
from megatron_ultralong.evaluation.commands.make_parts import Recipe
from megatron_ultralong.evaluation.commands.make_samples import make
from megatron_ultralong.evaluation.plain_tokenizer import PlainTokenizer, tokenizer_of
from megatron_ultralong.evaluation.registry import FAMILIES, family_tasks, find_tasks
from megatron_ultralong.evaluation.samples import read_samples, sample_path
from tests.data.tokenizer.shapes import build

TOOL = Path(__file__).parents[3] / "tools" / "evaluate.py"


@pytest.fixture
def book(tmp_path, texts):
    path = tmp_path / "book.jsonl"
    path.write_text(json.dumps({"text": "\n".join(texts)}))
    return path


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))}


def test_files_are_where_they_are_looked_for(tmp_path, book, tokenizer_folder):
    recipe = Recipe(tokenizer=tokenizer_folder, samples=2, haystack=book, depths=3, form="chat")
    make(recipe, task=("ruler/vt", "needles", "recall"), lengths=(3000,), output=tmp_path / "out", grid=2)
    found = {str(path) for path in content(tmp_path / "out")}
    assert found == {"ruler/vt/3000.jsonl", "needles/1500.jsonl", "needles/3000.jsonl", "recall/3000.jsonl"}
    rows = [json.loads(line) for line in (tmp_path / "out/ruler/vt/3000.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and {"index", "input", "outputs", "length", "answer_prefix"} <= rows[0].keys()
    assert [each.depth for each in read_samples(sample_path(tmp_path / "out", "needles", 1500))] == [0, 0.5, 1]
    assert not (tmp_path / "out/.underway").exists()


def test_what_is_there_is_kept_and_what_has_changed_is_made_anew(tmp_path, book, tokenizer_folder):
    out = tmp_path / "out"

    def run(**changes):
        given = {"tokenizer": tokenizer_folder, "samples": 2, "haystack": book}
        make(Recipe(**given | changes), task=("ruler/niah_single_2", "ruler/vt"), lengths=(2500,), output=out)
        return {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}

    first = run()
    assert run() == first and run(trials=3) == first  # of needles
    assert not set(run(seed=1).values()) & set(first.values())
    again = run(seed=1)
    book.write_text(json.dumps({"text": "Other words. " * 900}))
    assert not set(run(seed=1).values()) & set(again.values())
    assert "Other words." in (out / "ruler/niah_single_2/2500.jsonl").read_text()


def test_several_processes_make_the_same_bytes(tmp_path, book, monkeypatch):
    monkeypatch.setattr(make_parts, "_PART_TOKENS", 20_000)
    recipe = Recipe(tokenizer=Path("bytes"), samples=5, haystack=book)
    for folder, workers in (("one", 1), ("two", 2)):
        make(recipe, task=("ruler/niah_single_2", "ruler/fwe"), lengths=(9000,), output=tmp_path / folder,
             workers=workers)  # fmt: skip
    assert content(tmp_path / "one") == content(tmp_path / "two") and len(content(tmp_path / "one")) == 2


def test_a_killed_command_goes_on_where_it_was(tmp_path, book):
    """kill -9 while parts are there and others are not; what is finished is not made again."""
    command = [sys.executable, str(TOOL), "make", "--task", "ruler/niah_multikey_3", "--tokenizer", "bytes"]
    command += ["--lengths", "2097152", "--samples", "6", "--workers", "1", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (parts := list((tmp_path / "out/.underway").glob("*/*.jsonl"))):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out/ruler").exists()
    kept = {path: path.stat().st_mtime_ns for path in parts}
    made = []
    recipe = Recipe(tokenizer=Path("bytes"), samples=6)
    original = make_parts.write_samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_parts, "write_samples", lambda path, rows: made.append(path) or original(path, rows))
        make(recipe, task=("ruler/niah_multikey_3",), lengths=(2_097_152,), output=tmp_path / "out", workers=1)
    assert not set(made) & kept.keys() and len(made) < 3
    samples = list(read_samples(tmp_path / "out/ruler/niah_multikey_3/2097152.jsonl"))
    assert [each.index for each in samples] == [*range(6)]
    assert all(0 <= each.length - each.prompt_tokens - each.max_new_tokens < 120 for each in samples)
    assert not (tmp_path / "out/.underway").exists()


def test_lengths_too_short_are_said_and_the_others_made(tmp_path, book, tokenizer_folder, caplog):
    caplog.set_level("INFO")
    recipe = Recipe(tokenizer=tokenizer_folder, samples=1, haystack=book, depths=1)
    with pytest.raises(UserError, match=r"ruler/vt: length 120 is too short") as error:
        make(recipe, task=("ruler/vt", "needles"), lengths=(120, 3000), output=tmp_path / "out")
    assert "needles: length 120" not in str(error.value)
    assert sorted(map(str, content(tmp_path / "out"))) == ["needles/120.jsonl", "needles/3000.jsonl",
                                                           "ruler/vt/3000.jsonl"]  # fmt: skip
    make(recipe, task=("needles",), lengths=(1000,), output=tmp_path / "grid")
    assert len(content(tmp_path / "grid")) == 36 and "left out of the grid: needles: length 25 " in caplog.text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"samples": 0}, "--samples is 0; it must be at least 1"),
        ({"trials": -1}, "--trials is -1"),
        ({"lengths": ()}, "--lengths: nothing is no length"),
        ({"lengths": (0, 5)}, "--lengths: 0 is no length"),
        ({"task": ("ruler/nia_single_1",)}, "did you mean ruler/niah_single_1"),
        ({"task": ("rulers",)}, "there is no such task"),
        ({"tokenizer": Path("/none")}, "/none"),
        ({"haystack": Path("/none")}, "/none: the input is missing"),
        ({"data": Path("/none")}, "--data /none: it is missing"),
        ({"official": Path("/none")}, "/none"),
        ({"form": "chat", "tokenizer": Path("bytes")}, "no chat template"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_made(tmp_path, book, tokenizer_folder, changes, said):
    given = {"tokenizer": tokenizer_folder, "samples": 1, "haystack": book, "task": ("ruler/vt",), "lengths": (3000,)}
    given |= changes
    task, lengths = given.pop("task"), given.pop("lengths")
    with pytest.raises(UserError, match=re.escape(said)) as error:
        make(Recipe(**given), task=task, lengths=lengths, output=tmp_path / "out")
    assert "\n" not in str(error.value) and not content(tmp_path / "out")


def test_names_of_families_stand_for_their_tasks():
    assert [task.name for task in find_tasks(["needles"])] == ["needles"]
    assert len(find_tasks(["ruler", "recall"])) == 14
    for family in FAMILIES:
        assert all(task.name.split("/")[0] == family for task in family_tasks(family))


def test_a_tokenizer_file_alone_will_do(tmp_path):
    alone = tokenizer_of(build("tiktoken", tmp_path / "tiktoken"), "base")
    assert isinstance(alone, PlainTokenizer) and alone.start_ids == () and alone.decode(alone.encode("a b")) == "a b"
    folder = tokenizer_of(build("llama3", tmp_path / "llama3"), "base")
    assert folder.vocab_size > 900
