"""Templates read as literals, commits read as files; and each prompt the one that the official code makes."""

import json
import subprocess

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks import official_clone
from megatron_ultralong.evaluation.benchmarks.babilong import LABELS
from megatron_ultralong.evaluation.benchmarks.prompt_templates import fill
from megatron_ultralong.evaluation.registry import MakeOptions, find_task
from tests.evaluation.benchmarks import official, published

SOURCE = '''
import os
"""{no}"""
A = {"x": "first " "second\\d", 'y': ["\\u00e9", 1, -2.5, None]}  # noqa
B = A
C = open("/nowhere").read()
D = f"{A}"
def f():
    E = "inside"
'''


def test_literals_are_read_and_nothing_runs(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(SOURCE)
    assert official_clone.literal(path, "A") == {"x": "first second\\d", "y": ["é", 1, -2.5, None]}
    assert official_clone.entry(path, "A", "x", str) == "first second\\d"
    for name in "BCD":
        with pytest.raises(UserError, match=f"'{name}' is not made of literals alone"):
            official_clone.literal(path, name)
    with pytest.raises(UserError, match="nothing is assigned to 'E' in it"):
        official_clone.literal(path, "E")
    for key in ("y", "z"):
        with pytest.raises(UserError, match=f"'A' has no {key}; give --official a clone"):
            official_clone.entry(path, "A", key, str)


@pytest.mark.parametrize("content", [b"def (", b"\xff", b"A = " + b"(" * 5000, b"\x00"])
def test_broken_python_is_said(tmp_path, content):
    (tmp_path / "a.py").write_bytes(content)
    with pytest.raises(UserError, match="give --official a clone"):
        official_clone.literal(tmp_path / "a.py", "A")


def git(folder, *words):
    subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words], cwd=folder, check=True, capture_output=True
    )


def test_commits(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    git(clone, "init", "-b", "main")
    git(clone, "commit", "--allow-empty", "-m", "x")
    wanted = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True).stdout.strip()
    assert official_clone.commit(clone) == wanted
    git(clone, "pack-refs", "--all")
    assert not (clone / ".git" / "refs" / "heads" / "main").exists()
    assert official_clone.commit(clone) == wanted
    git(clone, "checkout", "--detach")
    assert official_clone.commit(clone) == wanted
    git(clone, "worktree", "add", "../tree", "-b", "other")
    assert official_clone.commit(tmp_path / "tree") == wanted
    (clone / ".git" / "HEAD").write_text("ref: ../../../etc/passwd")
    assert official_clone.commit(clone) == "unknown"
    assert official_clone.commit(tmp_path) == "unknown"
    with pytest.raises(UserError, match="is no folder; give a clone"):
        official_clone.commit(tmp_path / "none")


def test_places_are_filled_and_nothing_else_is_done():
    assert fill("{a} {{b}} {} {a!r} {a.b} {0}x", {"a": "{c}", "b": "2", "0": "z"}) == "{c} {2} {} {a!r} {a.b} zx"
    with pytest.raises(UserError, match=r"has a place \{c\}, and the data only a"):
        fill("{c}", {"a": ""})


def made(name, tokenizer, data, folder, form, lengths=(90_000,)):
    options = MakeOptions(tokenizer=tokenizer, lengths=lengths, count=1, data=data, official=folder, form=form)
    return next(find_task(name).make(options))


@pytest.mark.parametrize(("form", "model"), [("base", "yarn-mistral"), ("chat", "gpt4")])
def test_infinitebenchs_prompts(form, model, tokenizer, tmp_path):
    folder, data = official.clone("INFINITEBENCH"), published.infinitebench(tmp_path)
    templates = {
        name: official_clone.literal(folder / "src" / "prompt.py", name)
        for name in ("gpt4_templates", "claude2_templates", "yarn_mistral_templates")
    }
    names = {"jieba": None, "Rouge": None, "Path": str, "kimi_templates": {}} | templates
    theirs = official.definitions(folder / "src" / "eval_utils.py", **names)
    for path in sorted(data.glob("*.jsonl")):
        if (form, path.stem) == ("chat", "math_calc"):
            continue  # theirs adds a system message and turns, and no template
        row = json.loads(path.read_text().splitlines()[0])
        sample = made(f"infinitebench/{path.stem}", tokenizer, path, folder, form)
        assert (sample.input, sample.answer_prefix) == (theirs["create_prompt"](row, path.stem, model, ""), "")
        assert sample.extra["prompts"].startswith("src/prompt.py, ")
        assert " at 88b3daa6989da2fbe0077170d7a3c84c25d5ae58" in sample.extra["prompts"]
        labels = theirs["get_answer"](row, path.stem)
        assert sample.outputs == tuple(map(str, labels if isinstance(labels, list) else [labels]))


def test_lvevals_prompts(tokenizer, tmp_path):
    folder, data = official.clone("LVEVAL"), published.lveval(tmp_path)
    prompts = official_clone.literal(folder / "config.py", "DATASET_PROMPT")
    assert len(prompts) == 11
    for name, template in prompts.items():
        row = json.loads((data / f"{name}_16k.jsonl").read_text().splitlines()[0])
        sample = made(f"lveval/{name}", tokenizer, data, folder, "chat")
        assert sample.input == template.format(**row)
        assert sample.extra["prompts"] == "config.py, DATASET_PROMPT at 63e7ae939bd347c76b2cdb1cebfb216faca26897"


def test_babilongs_prompts(tokenizer, tmp_path):
    folder, data = official.clone("BABILONG"), published.babilong_files(tmp_path / "data")
    theirs = official.definitions(folder / "babilong" / "prompts.py")
    for name in LABELS:
        row = json.loads((data / name / "0k.json").read_text())[0]
        prompt = theirs["DEFAULT_PROMPTS"][name]
        expected = theirs["get_formatted_input"](
            row["input"], row["question"], prompt["examples"], prompt["instruction"], prompt["post_prompt"]
        )
        tokens = len(tokenizer.encode(expected)) + 100  # of which it takes more than half
        assert made(f"babilong/{name}", tokenizer, data, folder, "chat", (tokens,)).input == expected


def test_longbenchs_prompt(tokenizer, tmp_path):
    folder, data = official.clone("LONGBENCH"), published.longbench_v2(tmp_path / "data")
    row = json.loads((data / "data.json").read_text())[0]
    expected = (folder / "prompts" / "0shot.txt").read_text()
    for theirs, field in (("$DOC$", "context"), ("$Q$", "question"), *((f"$C_{x}$", f"choice_{x}") for x in "ABCD")):
        expected = expected.replace(theirs, row[field].strip())
    assert made("longbench_v2", tokenizer, data, folder, "base").input == expected
