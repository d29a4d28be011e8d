"""docs/training.md's tables of how long fits are those that their script prints, and hold what the examples promise."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.planning.search.layouts import Saving
from tests.benchmarks import longest

M = 2**20
PAGE = Path(__file__).parents[2] / "docs/training.md"


def test_the_page_says_what_the_script_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in (longest.machines(), longest.ladder()):
        assert "\n".join(table) in page, "print them anew: python tests/benchmarks/longest.py"


def test_six_million_tokens_fit_eight_gpus_of_80_gb_with_gradients_in_fp32() -> None:
    node = longest.longest(8, longest.CARDS["80 GB"], longest.ALL, True, host=2e12)
    assert node is not None and node.length >= 6 * M
    alone = longest.longest(1, longest.CARDS["141 GB"], longest.ALL, True)
    assert alone is not None and alone.length >= 3 * M // 2
    small = longest.longest(1, longest.CARDS["80 GB"], longest.ALL, False)
    assert small is not None and small.length >= 640 * 1024


def test_the_next_length_does_not_fit() -> None:
    found = longest.longest(1, longest.CARDS["141 GB"], Saving("full", True, True, host_optimizer=True), True)
    assert found is not None
    most = longest.CARDS["141 GB"] * (1 - longest.MARGIN)
    assert found.memory.needed <= most < longest.at(found.config, found.length + longest.STEP, 1).needed
