"""Leaving a job leaves none of its threads behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups, mcore


def gloo_threads() -> int:
    names = [(Path("/proc/self/task") / task / "comm").read_text() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)


@pytest.mark.gloo
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the threads of gloo")
def test_no_thread_of_a_group_outlives_the_job() -> None:
    before = gloo_threads()
    groups.initialize(ParallelConfig(device="cpu"))
    in_a_cycle = [mcore.parallel_state.get_data_parallel_group()]
    in_a_cycle.append(in_a_cycle)  # as a closure that a checkpointed layer leaves
    del in_a_cycle
    assert gloo_threads() > before
    groups.finalize()
    assert gloo_threads() == before
