"""A tiny model, its converted checkpoint and packed data, and a function that trains it as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import tokenize_corpus
from tests.convert.tiny_models import build_model
from tests.data.conftest import train_tokenizer
from tests.training.jobs import Job

SEQUENCE_LENGTH = 64
CONFIG = """
[model]
hf = "{root}/hf"

[rope]
kind = "yarn"
target_length = 128

[data]
sequence_length = 64
sources = [{{ index = "{root}/packed" }}]

[train]
steps = 3
global_batch_size = 4
micro_batch_size = 1
precision = "fp32"

[optimizer]
learning_rate = 1e-3

[checkpoint]
load = "{root}/megatron"

[log]
interval = 1

[parallel]
device = "cpu"
"""

Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hf/, megatron/, packed/, packed_chats/ and run.toml. Not to be changed."""
    root = tmp_path_factory.mktemp("training")
    text = Path(__file__).read_text() + Path(json.__file__).read_text()
    build_model(root / "hf", "llama", vocab_size=400, num_hidden_layers=4, max_position_embeddings=64)
    train_tokenizer(root / "hf", text)
    convert_hf_to_megatron(hf=root / "hf", output=root / "megatron")
    lines = [json.dumps({"text": part}) for part in text.split("\n\n") if part.strip()]
    (root / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = load_tokenizer(root / "hf")
    tokenize_corpus([root / "corpus.jsonl"], root / "corpus", tokenizer, Fields())
    options = PackOptions(sequence_length=SEQUENCE_LENGTH, separator=tuple(tokenizer.encode("<s>")))
    write_packed_index(open_corpus(root / "corpus"), root / "packed", options)
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(9)]
    (root / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in turns))
    tokenize_corpus([root / "chats.jsonl"], root / "chats", tokenizer, Fields())
    alone = PackOptions(sequence_length=SEQUENCE_LENGTH, packing="best_fit")
    write_packed_index(open_corpus(root / "chats"), root / "packed_chats", alone)
    (root / "run.toml").write_text(CONFIG.format(root=root))
    return root


@pytest.fixture
def launch(workspace: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """launch(processes, *overrides): torchrun -m megatron_ultralong.train on the tiny model."""

    def start(processes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
        words = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        if processes == 1:
            words = []
        words += ["-m", "megatron_ultralong.train", "--config", str(workspace / "run.toml"), *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=300, env=environment, check=False
        )

    return start


@pytest.fixture
def begin(workspace: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """begin(processes, *overrides) -> Job: the tiny model's training, going on while the test does."""
    jobs: list[Job] = []

    def start(processes: int, *overrides: str, change: Callable[[int], None] | None = None) -> Job:
        words = ["--config", str(workspace / "run.toml"), *overrides]
        jobs.append(Job(tmp_path / f"job{len(jobs)}", processes, words, change))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


@pytest.fixture
def train(begin: Callable[..., Job], tmp_path: Path) -> Train:
    """train(processes, *overrides) -> the rows of metrics.jsonl; fails the test if training does."""

    def metrics(processes: int, *overrides: str) -> list[dict[str, Any]]:
        path = tmp_path / "metrics.jsonl"
        path.unlink(missing_ok=True)
        job = begin(processes, "--log.metrics", str(path), *overrides)
        assert job.statuses(300) == [0] * processes, job.log()[-4000:]
        return [json.loads(line) for line in path.read_text().splitlines()]

    return metrics
