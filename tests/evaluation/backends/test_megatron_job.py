"""The backend in a job of its own: opened as the command line opens it, closed well, and left in error by one rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from megatron_ultralong.cli import exit_status
from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.evaluation.backends.interface import Prompt
from megatron_ultralong.evaluation.backends.megatron.megatron_backend import MegatronOptions, open_megatron
from megatron_ultralong.evaluation.plain_tokenizer import tokenizer_of
from tests.training.jobs import Job

PROMPTS = [Prompt("", ids, 6, stop=("e",)) for ids in ([0, 300, 301], [0, *range(100, 160)], [0, 300, 301, 302])]


def answer() -> None:
    """What each rank runs: MODEL, and a number of answers after which rank 1 fails."""
    folder, failing = Path(sys.argv[1]), int(sys.argv[2])
    parallel = ParallelConfig(device="cpu", context=2, timeout=60)
    options = MegatronOptions(load=folder, precision="fp32", parallel=parallel)
    with exit_status():
        backend = open_megatron(options, tokenizer_of(folder, "base"))
        try:
            found = {}
            for index, said in backend.generate(PROMPTS):
                found[index] = [said.ids, said.text, said.finished]
                if len(found) == failing and os.environ["RANK"] == "1":
                    raise OSError("the disk is gone")
            shared = backend.share([os.environ["RANK"]])
            backend.judge([])
            if backend.is_writer:
                print(json.dumps([[found[i] for i in range(len(PROMPTS))], shared, backend.describe()]))
        finally:
            backend.close()


@pytest.mark.gloo
def test_a_job_of_two(extended_folder: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, 2, [str(extended_folder), "0"], main=answer)
    assert job.statuses() == [0, 0], job.log(0) + job.log(1)
    answers, shared, described = json.loads(job.log().splitlines()[-1])
    assert shared == ["0"] and described["context"] == 2 and described["kind"] == "hugging face"
    for ids, text, finished in answers:
        assert 1 <= len(ids) <= 6 and "e" not in text
        assert finished or len(ids) == 6


@pytest.mark.gloo
def test_a_rank_that_fails_ends_the_others(extended_folder: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, 2, [str(extended_folder), "2"], main=answer)
    assert all(job.statuses(60)), job.log(0) + job.log(1)
    assert "OSError: the disk is gone" in job.log(1)
    assert "rank 1" in job.log(0) and "the disk is gone" in job.log(0)


@pytest.mark.gloo
def test_a_mistake_is_one_sentence(tokenizer_folder: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, 2, [str(tokenizer_folder), "0"], main=answer)
    assert job.statuses() == [2, 2]
    said = [line for rank in (0, 1) for line in job.log(rank).splitlines() if "error" in line]
    assert len(said) == 1 and "holds neither ultralong.json" in said[0]
