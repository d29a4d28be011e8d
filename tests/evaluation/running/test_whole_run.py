"""Runs through the command line: what is in the folder, going on after kill -9, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.model_options import ModelOptions
from megatron_ultralong.evaluation.commands.run_tasks import run
from megatron_ultralong.evaluation.run_folder import read_run
from megatron_ultralong.evaluation.running.request import Request
from megatron_ultralong.evaluation.samples import read_samples, write_samples

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def haystack(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("haystack") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def folder(extended_folder: Path) -> Path:
    return extended_folder


def request(haystack: Path, **changes: object) -> Request:
    fields: dict[str, object] = {
        "task": ("needles", "needles/several", "perplexity"),
        "lengths": (300, 360),
        "depths": 3,
        "haystack": haystack,
        "documents": haystack,
        "windows": 2,
        "stride": 64,
        "workers": 1,
    }
    return Request(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, folder: Path, haystack: Path) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(request(haystack), ModelOptions(model=str(folder)), output=output, name="Tiny")
    return output


def test_the_folder_says_what_was_asked_of_which_model(finished: Path, folder: Path) -> None:
    found = read_run(finished)
    assert found.name == "Tiny"
    header = found.header
    assert header["context_length"] == 384
    assert header["backend"]["name"] == "hf"
    assert header["backend"]["model"] == str(folder)
    assert header["tokenizer"]["vocab_size"] == 512
    assert header["settings"]["lengths"] == [300, 360]
    assert header["settings"]["tasks"][:2] == ["needles", "needles/several"]
    assert header["settings"]["official"] is None
    assert header["wording"] == "own"
    assert header["versions"]["torch"]


def test_every_sample_has_its_line(finished: Path) -> None:
    lines = list(read_run(finished).answers())
    assert sorted((line.task, line.length, line.index) for line in lines) == [
        (task, length, index) for task in ("needles", "needles/several") for length in (300, 360) for index in range(3)
    ]
    samples = {
        (sample.task, sample.length, sample.index): sample
        for path in (finished / "prompts").rglob("*.jsonl")
        for sample in read_samples(path)
    }
    for line in lines:
        sample = samples[line.task, line.length, line.index]
        assert line.how == ("judge" if line.task == "needles" else "generate")
        assert line.references == sample.outputs
        assert line.depth == sample.depth
        assert line.prompt_tokens + line.budget <= line.length or line.how == "judge"
        assert line.excerpt is not None
        assert "".join(line.excerpt) in sample.input
        assert line.excerpt[1] == sample.input[slice(*sample.place)] != ""
        assert (line.log_likelihood is None) == (line.how == "generate")
        if line.how == "judge":
            assert line.answer == (line.references[0] if line.score else None)


def test_tables_are_the_means_of_the_lines(finished: Path) -> None:
    found = read_run(finished)
    assert found.results["complete"]
    assert found.results["skipped"] == []
    for row in found.results["scores"]:
        lines = [line for line in found.answers() if (line.task, line.length) == (row["task"], row["length"])]
        assert row["score"] == round(100 * sum(line.score for line in lines) / len(lines), 2)
        assert row["samples"] == 3
        assert row["unfinished"] == sum(not line.finished for line in lines)
    assert {(row["length"], row["depth"]) for row in found.results["cells"] if row["task"] == "needles"} == {
        (length, depth) for length in (300, 360) for depth in (0.0, 0.5, 1.0)
    }
    rows = [row for row in found.results["perplexity"] if row["task"] == "perplexity/last_window"]
    assert [(row["length"], row["from"], row["to"], row["tokens"]) for row in rows] == [
        (300, 296, 360, 128),
        (360, 296, 360, 128),
    ]


def test_a_run_that_is_done_asks_nothing(
    finished: Path, folder: Path, haystack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_ultralong.evaluation.backends.hf import LanguageModel

    def never(*_: object) -> None:
        raise AssertionError("the model was asked")

    before = (finished / "samples.jsonl").read_bytes(), (finished / "results.json").read_bytes()
    made = LanguageModel.hidden
    calls = []
    monkeypatch.setattr(LanguageModel, "hidden", lambda *words: calls.append(words) or made(*words))
    run(request(haystack), ModelOptions(model=str(folder)), output=finished, name="Tiny")
    assert len(calls) == 1  # the head is checked when the model is loaded
    assert before == ((finished / "samples.jsonl").read_bytes(), (finished / "results.json").read_bytes())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": 7}, "was begun with seed = 42 and is now asked with 7"),
        ({"judge": False}, "was begun with judge = True and is now asked with False"),
        ({"lengths": (300,)}, r"was begun with lengths = \[300, 360\]"),
        ({"depths": 4}, "was begun with depths = 3"),
    ],
)
def test_a_changed_setting_is_refused(
    finished: Path, folder: Path, haystack: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        run(request(haystack, **changes), ModelOptions(model=str(folder)), output=finished)


def test_another_model_or_dtype_is_refused(finished: Path, folder: Path, model_folder: Path, haystack: Path) -> None:
    with pytest.raises(UserError, match="was begun with model ="):
        run(request(haystack), ModelOptions(model=str(model_folder)), output=finished)
    with pytest.raises(UserError, match="was begun with dtype = 'fp32' and is now asked with 'bf16'"):
        run(request(haystack), ModelOptions(model=str(folder), dtype="bf16"), output=finished)


def test_a_model_that_was_moved_is_the_same(tmp_path: Path, folder: Path, haystack: Path, finished: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    before = (finished / "samples.jsonl").read_bytes()
    run(request(haystack), ModelOptions(model=str(tmp_path / "moved")), output=finished, name="Tiny")
    assert (finished / "samples.jsonl").read_bytes() == before


def test_a_run_without_answers_may_be_asked_otherwise(tmp_path: Path, folder: Path, haystack: Path) -> None:
    """As after a server's no to --judge."""
    for lengths in ((20,), (300,)):
        asked = request(haystack, task=("needles",), lengths=lengths, grid=1)
        run(asked, ModelOptions(model=str(folder)), output=tmp_path / "run")
    found = read_run(tmp_path / "run")
    assert found.header["settings"]["lengths"] == [300]
    assert [row["length"] for row in found.results["scores"]] == [300]
    assert found.results["skipped"] == []


def test_a_length_past_the_context_is_skipped_and_said(tmp_path: Path, folder: Path, haystack: Path) -> None:
    asked = request(haystack, task=("needles", "perplexity/by_position"), lengths=(60, 140, 500), depths=1)
    run(asked, ModelOptions(model=str(folder)), output=tmp_path / "run")
    found = read_run(tmp_path / "run").results
    assert [(row["task"], row["length"]) for row in found["scores"]] == [("needles", 140)]
    reasons = {(row["task"], row["length"]): row["reason"] for row in found["skipped"]}
    assert reasons.keys() == {("needles", 60), ("needles", 500), ("perplexity/by_position", 500)}
    assert "context holds 384 tokens" in reasons["needles", 500]
    assert "length 60 is too short" in reasons["needles", 60]


def test_past_the_context_it_is_asked_where_that_is_wanted(tmp_path: Path, folder: Path, haystack: Path) -> None:
    asked = request(haystack, task=("needles/several",), lengths=(500,), depths=1, grid=1)
    run(asked, ModelOptions(model=str(folder), past_context=True), output=tmp_path / "run")
    (line,) = read_run(tmp_path / "run").answers()
    assert line.prompt_tokens > 384


def test_samples_of_a_file_and_one_that_does_not_fit(tmp_path: Path, folder: Path, finished: Path) -> None:
    """A budget that eats the prompt is no zero; RULER's own lines, which name no task, take that of --task."""
    sample = next(read_samples(finished / "prompts" / "needles" / "several" / "300.jsonl"))
    plain = {"index": 0, "input": sample.input, "outputs": list(sample.outputs), "length": 300}
    fits, eaten = plain | {"max_new_tokens": 8}, plain | {"max_new_tokens": 350, "index": 1}
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (fits, eaten)))
    asked = Request(task=("needles/several",), samples_file=(path,))
    run(asked, ModelOptions(model=str(folder)), output=tmp_path / "run")
    found = read_run(tmp_path / "run")
    assert [(row["task"], row["samples"]) for row in found.results["scores"]] == [("needles/several", 1)]
    (skipped,) = found.results["skipped"]
    assert skipped["samples"] == 1
    assert "350 of answer pass the context of 384" in skipped["reason"]
    with pytest.raises(UserError, match=r"validation\.jsonl, line 1: it names no task; give one --task"):
        run(Request(samples_file=(path,)), ModelOptions(model=str(folder)), output=tmp_path / "other")


def test_a_file_is_asked_for_the_lengths_that_are_named(tmp_path: Path, folder: Path, finished: Path) -> None:
    paths = [finished / "prompts" / "needles" / f"{length}.jsonl" for length in (300, 360)]
    write_samples(tmp_path / "both.jsonl", [sample for path in paths for sample in read_samples(path)])
    asked = Request(samples_file=(tmp_path / "both.jsonl",), lengths=(360,))
    run(asked, ModelOptions(model=str(folder)), output=tmp_path / "run")
    assert read_run(tmp_path / "run").header["wording"] == "not known"
    assert Request(samples_file=tuple(paths)).wording() == "own"
    assert {line.length for line in read_run(tmp_path / "run").answers()} == {360}


COMMAND = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "run"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_killed_run_goes_on(tmp_path: Path, folder: Path, haystack: Path, finished: Path) -> None:
    """kill -9 after some lines; then the same answers as in one go, and none asked twice."""
    words = [
        "--model",
        folder,
        "--task",
        "needles",
        "needles/several",
        "perplexity",
        "--lengths",
        "300",
        "360",
    ]
    words += ["--depths", "3", "--haystack", haystack, "--documents", haystack, "--windows", "2", "--stride", "64"]
    words += ["--workers", "1", "--name", "Tiny", "--output", tmp_path / "run"]
    process = subprocess.Popen([*COMMAND, *map(str, words)], env=environment(), stderr=subprocess.DEVNULL)
    path = tmp_path / "run" / "samples.jsonl"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 4):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with path.open("ab") as stream:
        stream.write(b'{"task":"needles","index":')  # and it was in the middle of a line
    run(request(haystack), ModelOptions(model=str(folder)), output=tmp_path / "run", name="Tiny")
    whole, again = read_run(finished), read_run(tmp_path / "run")

    def comparable(row: object) -> dict[str, object]:
        found = vars(row) | {"seconds": 0}
        if "log_likelihood" in found:
            found["log_likelihood"] = None  # batches differ
        return found

    assert again.results["complete"]
    assert sorted(map(str, map(comparable, again.answers()))) == sorted(map(str, map(comparable, whole.answers())))
    assert sum(1 for _ in again.answers()) == 12
    assert [row | {"seconds": 0} for row in again.results["scores"]] == [
        row | {"seconds": 0} for row in whole.results["scores"]
    ]
    for ours, theirs in zip(again.results["perplexity"], whole.results["perplexity"], strict=True):
        assert ours == theirs | {"perplexity": pytest.approx(theirs["perplexity"], rel=1e-5)}


def fails(words: list[object], *, said: str) -> None:
    done = subprocess.run([*COMMAND, *map(str, words)], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_are_one_sentence(tmp_path: Path, folder: Path, haystack: Path) -> None:
    common = ["--model", folder, "--output", tmp_path / "run"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    words = ["--task", "needles", "--haystack", haystack, "--lengths", "140"]
    fails([*common, *words], said="holds thesis.tex and no run; name another folder")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"task": ("needels",)}, "needels: there is no such task; did you mean needles"),
        ({"task": ("perplexity/first_window",)}, "perplexity/first_window: there is no such task; there are"),
        ({"documents": None}, "perplexity needs held-out documents"),
        ({"samples_file": (Path("nowhere.jsonl"),)}, r"nowhere\.jsonl: there is no such file"),
        ({"task": ()}, "nothing is asked; give --task, or --samples-file"),
        ({"windows": 0}, "--windows is 0; give at least 1"),
        ({"lengths": (1,)}, "--lengths has 1"),
    ],
)
def test_what_cannot_be_asked(haystack: Path, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        request(haystack, **changes).check()
