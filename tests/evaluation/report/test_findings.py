"""What a report says before its numbers."""

from megatron_ultralong.evaluation.report.comparison import compare_scores
from megatron_ultralong.evaluation.report.findings import findings, skipped
from megatron_ultralong.evaluation.report.gathering import gather
from megatron_ultralong.evaluation.run_folder import read_run
from tests.evaluation.report.run_folders import line, write_run


def found(*folders):
    models = gather([(None, read_run(folder)) for folder in folders])
    return findings(models, compare_scores(models))


def test_over_long_answers_and_holes_are_named(models):
    said = findings(models, compare_scores(models))
    assert said == [
        "extended: 5 of 44 answers are longer than the budget, which the task does not allow; they count as they are; "
        "most in ruler/qa_1 at 4,096 (1 of 4), ruler/qa_1 at 8,192 (1 of 4), ruler/qa_1 at 32K (1 of 4), "
        "ruler/qa_1 at 64K (1 of 4).",
        "Skipped, in part or whole: 1 tasks and lengths, listed with their reasons; no zeros.",
    ]
    assert skipped(models) == [
        {"model": "base", "task": "ruler/vt", "length": 16384, "samples": 4, "reason": "a <reason> & more"}
    ]


def test_nothing_is_said_of_a_run_that_is_as_it_should_be(tmp_path):
    assert found(write_run(tmp_path / "a", "a", [line("ruler/vt", 0, 4096, 1.0)])) == []


def test_answers_that_are_empty_or_cut(tmp_path):
    rows = [line("ruler/vt", index, 4096, 0.0, answer=" " if index else "x", finished=False) for index in range(4)]
    said = found(write_run(tmp_path / "a", "a", rows, complete=False))
    assert said == [
        "a: the run is not finished; what is shown is what there was.",
        "a: 4 of 4 answers were cut at the budget; most in ruler/vt at 4,096 (4 of 4).",
        "a: 3 of 4 answers are empty; most in ruler/vt at 4,096 (3 of 4).",
    ]


def test_skipped_samples_of_a_task_and_length_are_one_row(tmp_path):
    rows = [
        {"task": "ruler/vt", "length": 4096, "samples": number, "reason": f"{number} is too long"}
        for number in (1, 2, 3)
    ]
    model = gather([(None, read_run(write_run(tmp_path / "a", "a", [], skipped=rows)))])
    reason = "1 is too long; others likewise"
    assert skipped(model) == [{"model": "a", "task": "ruler/vt", "length": 4096, "samples": 6, "reason": reason}]


def test_haystacks_that_repeat(tmp_path):
    rows = [line("ruler/niah_single_2", 0, length, 1.0, haystack_repeats=length / 6144) for length in (4096, 8192)]
    rows[0]["haystack_repeats"] = 1.0
    assert found(write_run(tmp_path / "a", "a", rows)) == [
        "In 1 tasks and lengths the haystack is shorter than the prompt and repeats, up to 1.3 times over in "
        "ruler/niah_single_2 at 8,192 tokens."
    ]


def test_runs_that_were_not_asked_the_same(tmp_path):
    rows = [line("ruler/vt", index, length, 1.0) for index in range(4) for length in (4096, 8192)]
    other = [row | {"prompt_hash": "another"} if row["length"] == 4096 else row for row in rows[:-1]]
    said = found(write_run(tmp_path / "a", "a", rows), write_run(tmp_path / "b", "b", other))
    assert said == [
        "b and a were not asked the same prompts in 1 of 2 tasks and lengths: there is no paired difference there.",
        "b and a answered different samples in 1 of 2 tasks and lengths: differences are over those that both did.",
    ]
