"""The tool as a user runs it, in this process; bad input gives one sentence and exit status 2."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.cli import run
from megatron_ultralong.evaluation.benchmarks.tasks import recall_prompts
from megatron_ultralong.evaluation.evaluate import doubled_lengths
from tools.evaluate import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def arguments(model_folder: Path, extended_folder: Path, corpus: Path, tmp_path: Path) -> dict[str, str]:
    return {
        "--base": str(model_folder),
        "--extended": str(extended_folder),
        "--haystack": str(corpus),
        "--documents": str(corpus),
        "--output": str(tmp_path / "out"),
        "--depths": "3",
        "--samples-per-cell": "2",
        "--recall-samples": "3",
        "--perplexity-windows": "2",
    }


def evaluate(arguments: dict[str, str], *more: str) -> dict[str, Any]:
    run(main, [*(word for pair in arguments.items() for word in pair), *more])
    return json.loads((Path(arguments["--output"]) / "results.json").read_text(encoding="utf-8"))


def test_results(arguments: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = tmp_path / "extra.json"
    extra.write_text(json.dumps({"world_size": 2, "seconds": {"training": 5.0}}))
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0, "grad_norm": 1.0}\n')
    with caplog.at_level(logging.INFO):
        results = evaluate(arguments, "--extra", str(extra), "--metrics", f"pretraining={metrics}")
    assert "base: asked up to 384 tokens, past its context of 192" in caplog.text
    assert results["base"]["context_length"] == 192
    assert results["extended"]["context_length"] == results["target_length"] == 384
    for name in ("base", "extended"):
        cells = [(row["length"], row["depth"]) for row in results[name]["passkey"]]
        assert cells == [(192, 0.0), (192, 0.5), (192, 1.0), (384, 0.0), (384, 0.5), (384, 1.0)]
        assert results[name]["passkey_at_target"] == 0.0
        assert 0.0 <= results[name]["short_task"] <= 1.0
        assert [row["to"] for row in results["perplexity"][name]] == [12, 24, 48, 96, 192, 384]
        assert sum(row["tokens"] for row in results["perplexity"][name]) == 2 * 383
    assert results["rope_scaling"]["factor"] == 2.0
    assert results["world_size"] == 2
    assert list(results["seconds"]) == ["training", "evaluation"]
    assert "pretraining" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_a_second_run_gives_the_same_scores(
    arguments: dict[str, str], model_folder: Path, extended_folder: Path
) -> None:
    def scores(results: dict[str, Any], name: str) -> Any:
        return results[name]["passkey"], results[name]["short_task"], results["perplexity"][name]

    first = evaluate(arguments)
    del arguments["--base"], arguments["--extended"]
    models = [f"old={model_folder}", f"copy={model_folder}", f"new={extended_folder}"]
    second = evaluate(arguments, "--lengths", "192", "384", "--model", *models)
    assert scores(first, "base") == scores(second, "old") == scores(second, "copy")
    assert scores(first, "extended") == scores(second, "new") != scores(second, "old")


def test_the_short_task_is_of_the_length_asked_for(
    arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[list[int]] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        prompts = recall_prompts(*args, **kwargs)
        drawn.append([len(prompt.ids) for prompt in prompts])
        return prompts

    monkeypatch.setattr("megatron_ultralong.evaluation.evaluate.recall_prompts", recorded)
    for flags, length in (([], 192), (["--recall-length", "150"], 150), (["--recall-length", "192"], 192)):
        settings = evaluate(arguments, "--recall-facts", "1", *flags)["settings"]
        assert settings["recall_length"] == length
        assert len(drawn[-1]) == 3 and all(length - 30 < tokens <= length for tokens in drawn[-1]), drawn
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert f"of a text of {length} tokens, {'the' if length == 192 else 'within the'} context of base" in page


def test_doubled_lengths() -> None:
    assert doubled_lengths(256, 2048) == (256, 512, 1024, 2048)
    assert doubled_lengths(256, 1500) == (256, 512, 1024, 1500)
    assert doubled_lengths(256, 256) == (256,)


def refused(arguments: dict[str, str], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The sentence of a run that must end with status 2 and write nothing."""
    with pytest.raises(SystemExit) as stopped:
        evaluate(arguments, *more)
    assert stopped.value.code == 2
    assert not Path(arguments["--output"]).exists()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_a_missing_model(arguments: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments["--extended"] = "nowhere"
    assert refused(arguments, capsys).startswith("error: nowhere: there is no such folder;")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("config.json", "the model's configuration is missing"), ("tokenizer.json", "the tokenizer is missing")],
)
def test_a_missing_file_of_the_model(
    name: str,
    sentence: str,
    arguments: dict[str, str],
    extended_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(extended_folder, tmp_path / "broken")
    (folder / name).unlink()
    arguments["--extended"] = str(folder)
    assert sentence in refused(arguments, capsys)


def test_a_tokenizer_without_chat_template(
    arguments: dict[str, str], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "plain")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    arguments["--base"] = str(folder)
    assert "the tokenizer has no chat template" in refused(arguments, capsys)


def test_models_with_other_tokenizers(
    arguments: dict[str, str], extended_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(extended_folder, tmp_path / "other")
    config = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(config.replace("<|end_header_id|>", "<|end_of_text|>"))
    arguments["--extended"] = str(folder)
    assert "its tokenizer or chat template differs from the first model's" in refused(arguments, capsys)


def test_a_vocabulary_larger_than_the_model(
    arguments: dict[str, str], extended_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(extended_folder, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    arguments["--extended"] = str(folder)
    assert "the tokenizer has 512 ids and config.json's vocab_size is 300" in refused(arguments, capsys)


@pytest.mark.parametrize("flag", ["--haystack", "--documents"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "there is no text in it"),
        ('{"text": " "}\n', "there is no text in it"),
        ('{"text": "a"}\n{"text": \n', "line 2: is not JSON"),
        ('{"body": "a"}\n', "line 1: the document has no field 'text'"),
    ],
)
def test_bad_texts(
    flag: str,
    content: str,
    sentence: str,
    arguments: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    arguments[flag] = str(path)
    last = refused(arguments, capsys)
    assert str(path) in last
    assert sentence in last


def test_documents_shorter_than_the_target(
    arguments: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "far too short"}\n')
    arguments["--documents"] = str(path)
    assert "perplexity needs documents of at least 384 tokens" in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--lengths", "30"], "length 30 is too short: needle, question and answer take"),
        (["--samples-per-cell", "0"], "samples_per_cell = 0 is too small; give at least 1."),
        (["--depths", "0"], "depths = 0 is too small; give at least 1."),
        (["--recall-length", "193"], "recall_length = 193 is out of range: the short task shows what base could do"),
        (["--recall-length", "-1"], "recall_length = -1 is out of range"),
        (["--recall-length", "40"], "= 40 is too short"),
        (["--model", "a=b"], "name the models either by --base and --extended or by --model NAME=DIR"),
        (["--metrics", "curve"], "--metrics curve: write it as NAME=PATH."),
        (["--extra", "nowhere.json"], "nowhere.json: the file of further results is missing"),
    ],
)
def test_bad_settings(
    more: list[str], sentence: str, arguments: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(arguments, capsys, *more)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("[1]", "it holds a JSON list; give a JSON object"), ('{"base": 1}', "the key 'base' is evaluation's own")],
)
def test_bad_extra(
    content: str, sentence: str, arguments: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "extra.json"
    path.write_text(content)
    assert sentence in refused(arguments, capsys, "--extra", str(path))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "there is no step in it"),
        ('{"step": 1}\n', "line 1: step, loss or grad_norm is missing"),
        ("{\n", "line 1: it is not JSON"),
    ],
)
def test_bad_metrics(
    content: str, sentence: str, arguments: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    assert sentence in refused(arguments, capsys, "--metrics", f"run={path}")
