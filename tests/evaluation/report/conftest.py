"""Two runs whose numbers can be checked by hand, and two as large as a real evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ultralong.evaluation.report.gathering import Model, gather
from megatron_ultralong.evaluation.run_folder import read_run
from tests.evaluation.report.run_folders import large_run, line, needle, window, write_run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """base and extended: RULER's vt and qa_1 at 4K to 128K (16K is missing), needles, perplexity; scores known.

    base finds half of vt and all of qa_1 up to 8K, nothing beyond; extended all of vt, and qa_1's even samples.
    """
    root = tmp_path_factory.mktemp("small")
    lengths = (4096, 8192, 32768, 65536, 131072)
    base, extended = [], []
    for length in lengths:
        for index in range(4):
            base.append(line("ruler/vt", index, length, float(length <= 8192 and index < 2)))
            extended.append(line("ruler/vt", index, length, 1.0, finished=index > 0))
            base.append(line("ruler/qa_1", index, length, float(length <= 8192)))
            extended.append(line("ruler/qa_1", index, length, float(index % 2 == 0), over_budget=index == 3))
    for place, depth in enumerate((0.0, 1.0)):
        base.append(needle(place, 4096, depth, 1.0))
        base.append(needle(place, 8192, depth, float(depth == 0)))
        extended += [needle(place, length, depth, 1.0) for length in (4096, 8192)]
    windows = [window(index, 8192, [(0, 4096, 8190.0 + index, 4095), (4096, 8192, 4096.0, 4096)]) for index in (0, 1)]
    skipped = [{"task": "ruler/vt", "length": 16384, "samples": 4, "reason": "a <reason> & more"}]
    write_run(root / "base", "base", base, context=8192, windows=windows, skipped=skipped)
    write_run(root / "extended", "extended", extended, context=131072, windows=windows)
    return [root / "base", root / "extended"]


@pytest.fixture(scope="session")
def models(small: list[Path]) -> list[Model]:
    return gather([(None, read_run(folder)) for folder in small])


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("large")
    return [
        large_run(root / "base", "Llama-3.1-8B-Instruct", 131072, 0.97),
        large_run(root / "extended", "UltraLong-1M", 1048576, 1.0),
    ]
