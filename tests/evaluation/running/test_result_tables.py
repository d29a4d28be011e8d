import math

import pytest

from megatron_ultralong.evaluation.running.answer_log import Tally
from megatron_ultralong.evaluation.running.result_tables import tables
from megatron_ultralong.evaluation.running.sample_files import Skip


def tally(score: float, **changes: object) -> Tally:
    fields: dict[str, object] = {
        "depth": None,
        "how": "generate",
        "budget": 30,
        "empty": False,
        "finished": True,
        "over_budget": False,
        "seconds": 0.5,
    }
    return Tally(score=score, **(fields | changes))  # type: ignore[arg-type]


def test_scores_cells_and_skips() -> None:
    answered = {
        ("ruler/vt", 4096, 0, "a"): tally(1.0),
        ("ruler/vt", 4096, 1, "b"): tally(2 / 3, finished=False, over_budget=True),
        ("ruler/vt", 4096, 2, "c"): tally(0.0, empty=True),
        ("needles", 4096, 0, "d"): tally(1.0, depth=1.0, how="judge"),
        ("needles", 4096, 1, "e"): tally(0.0, depth=0.0, how="judge"),
        ("needles", 4096, 2, "f"): tally(1.0, depth=0.0, how="judge"),
    }
    skip = Skip("ruler/vt", 8192, None, "too long")
    found = tables(answered, {}, [skip], {"needles": 0.00001}, complete=True)
    assert found["scores"] == [
        {
            "task": "ruler/vt",
            "length": 4096,
            "score": 55.56,
            "samples": 3,
            "how": "generate",
            "budget": 30,
            "chance": 0.0,
            "empty": 1,
            "unfinished": 1,
            "over_budget": 1,
            "seconds": 1.5,
        },
        {
            "task": "needles",
            "length": 4096,
            "score": 66.67,
            "samples": 3,
            "how": "judge",
            "budget": 30,
            "chance": 0.00001,
            "empty": 0,
            "unfinished": 0,
            "over_budget": 0,
            "seconds": 1.5,
        },
    ]
    assert found["cells"] == [
        {"task": "needles", "length": 4096, "depth": 0.0, "score": 50.0, "samples": 2},
        {"task": "needles", "length": 4096, "depth": 1.0, "score": 100.0, "samples": 1},
    ]
    assert found["skipped"] == [{"task": "ruler/vt", "length": 8192, "samples": None, "reason": "too long"}]
    assert found["seconds"] == 3.0


def test_perplexity_is_of_all_tokens_and_no_mean_of_means() -> None:
    task = "perplexity/by_position"
    windows = {
        (task, 8, 0, "a"): ([[0, 4, 3.0, 3], [4, 8, 8.0, 4]], 1.0),
        (task, 8, 1, "b"): ([[0, 4, 0.0, 1]], 1.0),
    }
    rows = tables({}, windows, [], {}, complete=True)["perplexity"]
    assert [(row["from"], row["to"], row["tokens"], row["windows"]) for row in rows] == [(0, 4, 4, 2), (4, 8, 4, 1)]
    assert [row["perplexity"] for row in rows] == pytest.approx([math.exp(3 / 4), math.exp(2)], abs=1e-4)
