"""Averages, differences and effective lengths against numbers computed by hand."""

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.report.comparison import compare_scores, needle_grids
from megatron_ultralong.evaluation.report.gathering import gather
from megatron_ultralong.evaluation.report.published import published
from megatron_ultralong.evaluation.run_folder import read_run
from tests.evaluation.report.run_folders import RULER, line, write_run


@pytest.fixture(scope="module")
def ruler(models):
    return compare_scores(models)["ruler"]


def scores(rows):
    return {int(length): row["score"] for length, row in rows.items()}


def test_scores_by_task_and_length(ruler):
    assert ruler["lengths"] == [4096, 8192, 32768, 65536, 131072]
    assert ruler["tasks"] == ["ruler/vt", "ruler/qa_1"]
    base, extended = ruler["models"]["base"], ruler["models"]["extended"]
    assert scores(base["tasks"]["ruler/vt"]) == {4096: 50, 8192: 50, 32768: 0, 65536: 0, 131072: 0}
    assert scores(base["lengths"]) == {4096: 75, 8192: 75, 32768: 0, 65536: 0, 131072: 0}
    assert scores(extended["lengths"]) == dict.fromkeys(ruler["lengths"], 75)
    row = extended["tasks"]["ruler/qa_1"]["4096"]
    assert (row["samples"], row["unfinished"], row["over_budget"], row["empty"]) == (4, 0, 1, 0)
    assert 0 <= row["low"] < 50 < row["high"] <= 100


def test_differences_are_over_the_same_samples(ruler):
    extended = ruler["models"]["extended"]
    gaps = {task: extended["tasks"][task]["4096"]["difference"]["score"] for task in ruler["tasks"]}
    assert gaps == {"ruler/vt": 50, "ruler/qa_1": -50}
    assert extended["lengths"]["4096"]["difference"]["score"] == 0
    assert extended["lengths"]["32768"]["difference"]["score"] == 75
    assert ruler["models"]["base"]["lengths"]["4096"]["difference"] is None


def test_a_paired_difference_is_narrower_than_an_unpaired_one(tmp_path):
    """Of samples whose difficulty both models share, one is right where the other is and on two more."""
    rows = [line("ruler/vt", index, 4096, float(index % 2)) for index in range(40)]
    better = [row | {"score": 1.0} if row["index"] in (0, 2) else row for row in rows]
    runs = [write_run(tmp_path / name, name, them) for name, them in (("a", rows), ("b", better))]
    found = compare_scores(gather([(None, read_run(run)) for run in runs]))["ruler"]["models"]
    cell, gap = found["b"]["tasks"]["ruler/vt"]["4096"], found["b"]["tasks"]["ruler/vt"]["4096"]["difference"]
    assert gap["score"] == 5 and gap["high"] - gap["low"] < 0.5 * (cell["high"] - cell["low"])


def test_averages_of_papers_and_what_they_lack(ruler):
    averages = ruler["models"]["base"]["averages"]
    assert list(averages) == ["<128K"]  # 512K and 1M were not asked
    assert (averages["<128K"]["score"], averages["<128K"]["missing"]) == (30, [16384])
    assert (averages["<128K"]["tasks"], averages["<128K"]["of"]) == (2, 13)
    assert averages["<128K"]["lengths"] == [4096, 8192, 32768, 65536, 131072]
    gap = ruler["models"]["extended"]["averages"]["<128K"]["difference"]
    assert gap["score"] == 45


def test_the_published_average_is_the_papers_of_its_lengths(tmp_path):
    """A model that scores 100 at 4K and 40 beyond: means over 6, 8 and 9 lengths."""
    lengths = [4096 << power for power in range(9)]
    rows = [line(f"ruler/{task}", i, n, float(n == 4096 or i < 2)) for task in RULER for n in lengths for i in range(5)]
    run = read_run(write_run(tmp_path / "run", "m", rows))
    model = compare_scores(gather([(None, run)]))["ruler"]["models"]["m"]
    assert {name: row["score"] for name, row in model["averages"].items()} == {"<128K": 50, "<512K": 47.5, "<1M": 46.67}
    assert all(row["missing"] == [] for row in model["averages"].values())
    assert model["effective_length"] == {"tokens": 4096, "threshold": 85.6, "tasks": 13, "of": 13}


def test_lv_evals_levels_are_in_its_tasks_names(tmp_path):
    """At two lengths of context the longer counts; the level is words."""
    rows = [
        line(f"lveval/{name}_{level}", 0, length, score if length == 131072 else 0.0)
        for name in ("cmrc_mixup", "factrecall_en")
        for level, score in (("16k", 0.8), ("32k", 0.6), ("64k", 0.4), ("128k", 0.2))
        for length in (65536, 131072)
    ]
    run = read_run(write_run(tmp_path / "run", "m", rows))
    averages = compare_scores(gather([(None, run)]))["lveval"]["models"]["m"]["averages"]
    assert list(averages) == ["<128K"]
    found = averages["<128K"]
    assert (found["score"], found["missing"], found["tasks"], found["of"]) == (50, [], 2, 11)


def test_infinitebench_is_the_mean_of_its_tasks(tmp_path):
    tasks = [f"infinitebench/{n}" for n in range(12)]
    rows = [line(task, index, 131072, float(n % 2)) for n, task in enumerate(tasks) for index in range(n + 1)]
    run = read_run(write_run(tmp_path / "run", "m", rows))
    found = compare_scores(gather([(None, run)]))["infinitebench"]["models"]["m"]["averages"]["all"]
    assert (found["score"], found["tasks"], found["of"], found["missing"]) == (50, 12, 12, [])


def test_the_effective_length_must_exceed_the_threshold(tmp_path):
    rows = [line("ruler/vt", i, n, float(i < right)) for n, right in ((4096, 856), (8192, 857)) for i in range(1000)]
    run = read_run(write_run(tmp_path / "run", "m", rows))
    assert compare_scores(gather([(None, run)]))["ruler"]["models"]["m"]["effective_length"]["tokens"] == 8192
    run = read_run(write_run(tmp_path / "less", "m", rows[:1000]))
    assert compare_scores(gather([(None, run)]))["ruler"]["models"]["m"]["effective_length"]["tokens"] is None


def test_grids_of_needles(models):
    assert needle_grids(models)["needles"]["base"] == [
        {"length": 4096, "depth": 0.0, "score": 100.0, "samples": 1},
        {"length": 4096, "depth": 1.0, "score": 100.0, "samples": 1},
        {"length": 8192, "depth": 0.0, "score": 100.0, "samples": 1},
        {"length": 8192, "depth": 1.0, "score": 0.0, "samples": 1},
    ]


def test_the_published_rows_name_their_source():
    rows = {row["model"]: row for row in published("ruler")}
    assert rows["UltraLong-1M"] == {
        "model": "UltraLong-1M", "source": "arXiv 2504.06214", "scores": {"<128K": 86.6, "<512K": 81.6, "<1M": 79.1},
    }  # fmt: skip
    assert rows["Llama-3.1-8B-Instruct"]["scores"]["<1M"] == 61.3
    short = next(row["scores"] for row in published("short") if row["model"] == "UltraLong-4M")
    assert short["average"] == pytest.approx(sum(v for k, v in short.items() if k != "average") / 5, abs=0.01)
    assert published("needles") == []


def test_names_must_differ_and_runs_hold_something(small, tmp_path):
    with pytest.raises(UserError, match=r"are both called 'base' and are of models/base and models/ext"):
        gather([(None, read_run(small[0])), ("base", read_run(small[1]))])
    empty = write_run(tmp_path / "empty", "m", [])
    with pytest.raises(UserError, match="there is no answer in it yet"):
        gather([(None, read_run(empty))])


def test_runs_of_one_model_are_shown_as_one(small, tmp_path):
    more = write_run(tmp_path / "more", "base", [line("babilong/qa1", 0, 4096, 1.0)])
    (model,) = gather([(None, read_run(small[0])), (None, read_run(more))])
    assert (len(model.runs), model.context_length) == (2, 8192)
    assert {"babilong", "ruler", "needles"} == compare_scores([model]).keys()
    with pytest.raises(UserError, match="it is named twice; leave one out"):
        gather([(None, read_run(more)), (None, read_run(more))])
