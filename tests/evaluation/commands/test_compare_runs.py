"""`compare` as a user calls it: names, files, and what is refused."""

import json
import shutil

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.commands.compare_runs import compare_runs
from tests.evaluation.report.run_folders import line, needle, write_run
from tools.evaluate import COMMANDS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rows = [needle(0, 256, 0.5, 1.0), line("recall/facts", 0, 256, 1.0)]
    return write_run(tmp_path_factory.mktemp("run") / "a=b", "own", rows)


def test_a_run_is_called_by_its_own_name_or_by_another(run, tmp_path):
    assert COMMANDS["compare"] is compare_runs
    compare_runs((str(run), f"other={run}"), output=tmp_path / "out")
    found = json.loads((tmp_path / "out/compare.json").read_text())
    assert list(found["models"]) == ["own", "other"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.json", "heatmap.png", "report.html",
    ]  # fmt: skip


def test_a_run_under_way_is_shown_as_far_as_it_is(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run/samples.jsonl").open("a") as stream:
        stream.write('{"task": "recall/fac')  # as a kill leaves it
    compare_runs((str(tmp_path / "run"),), output=tmp_path / "out")
    assert json.loads((tmp_path / "out/compare.json").read_text())["families"]["recall"]["lengths"] == [256]


@pytest.mark.parametrize(
    ("words", "more", "wanted"),
    [
        ((), {}, "there is no run to show; name at least one folder"),
        (("gone",), {}, "gone/run.json: .*name a folder that tools/evaluate.py run has written"),
        (("=gone",), {}, "=gone: write a run as FOLDER or NAME=FOLDER"),
        (("{run}", "own={run}"), {}, "it is named twice; leave one out"),
        (("{run}",), {"metrics": ("x",)}, "x: a run's metrics.jsonl is given as NAME=PATH."),
        (("{run}",), {"metrics": ("x=gone.jsonl",)}, "gone.jsonl: it cannot be read"),
        (("{run}",), {"metrics": ("x={run}/run.json",)}, "run.json, line 1: step, loss or grad_norm is missing"),
        (("{run}",), {"metrics": ("x=/dev/null",)}, "/dev/null: there is no step in it"),
        (("{run}",), {"samples_a_task": -1}, "--samples-a-task is -1; give 0 or more"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_sentence(run, tmp_path, words, more, wanted):
    more = {
        key: tuple(word.format(run=run) for word in value) if isinstance(value, tuple) else value
        for key, value in more.items()
    }
    with pytest.raises(UserError, match=wanted):
        compare_runs(tuple(word.format(run=run) for word in words), output=tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused_first(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="where nothing can be written; name another folder"):
        compare_runs((str(run),), output=tmp_path / "file" / "out")


def test_extra_must_be_an_object(run, tmp_path):
    (tmp_path / "extra.json").write_text("[1]")
    with pytest.raises(UserError, match="it holds a JSON list; give a JSON object"):
        compare_runs((str(run),), output=tmp_path / "out", extra=tmp_path / "extra.json")
