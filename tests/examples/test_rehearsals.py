"""Every example's training step, rehearsed for the processes that it declares, at full length.

At full depth too, but for layers that work tile by tile: two of them are, and planning/memory.py gives the others.

`make rehearse` runs them; in `make test` they are slow, and a process that has run other tests holds more.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.files import read_json
from megatron_ultralong.rehearsal.differing import differing_ranks, rehearse_job
from megatron_ultralong.rehearsal.limits import check_fits
from megatron_ultralong.rehearsal.record import own_memory
from tests.examples.test_examples import MODELS, ROOT, WANTED, card

CONFIGS = sorted({*(ROOT / "examples").rglob("*.toml")} - {ROOT / "examples/ablations/arms.toml"})  # a plan of runs


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "examples"))


def model_of(folder: Path) -> dict[str, Any]:
    if str(folder) in MODELS:
        return MODELS[str(folder)]
    read: dict[str, Any] = read_json(ROOT / "examples/tiny_cpu/base/config.json", "the model", "")
    return read


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_step_of_every_example_runs_and_fits(path: Path) -> None:
    """On the rank that needs most: of these layouts, which have one pipeline stage, the first as any."""
    config, model = load_config(path), model_of(load_config(path).model.hf)
    processes = WANTED[name(path.parent)][-1] if name(path.parent) in WANTED else 2
    on_gpu = name(path.parent) in WANTED
    if config.parallel.head_groups:  # one sample says what all do
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch_size=1))
    job = rehearse_job(config, model, processes, [0], capability=(9, 0) if on_gpu else None)
    assert config.parallel.pipeline == 1
    check_fits(job, int(1e9 * card(path.parent)) if on_gpu else 80_000_000_000)
    assert own_memory() < 1.5e9
    (found,) = job.found
    layers, forwards = job.layers[1], 2 if config.parallel.recompute == "full" else 1
    assert found.operators["attention"].total() >= layers * (forwards + 1)
    assert job.worst.rank in differing_ranks(config, processes)
