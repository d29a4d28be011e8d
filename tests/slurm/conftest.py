"""A real SLURM of two nodes on this machine (cluster.sh), and the tiny model as a user of an example's scripts has it.

Nothing of the examples is edited: the tiny model, two processes and gloo are swapped in by the variables that
examples/*/settings.sh offers. Where SLURM is missing the tests skip, and fail under REQUIRE_SLURM
(make test-slurm sets it).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("cluster.sh")
EXAMPLE = "examples/llama3.1_8b_1m"
LENGTH, STEPS, BATCH = 512, 60, 2
LAYOUT = "--parallel.tensor 1 --parallel.sequence_parallel false --parallel.context 2"


@dataclasses.dataclass
class Cluster:
    """A running cluster.

    Attributes:
        folder: of its slurm.conf, logs and state.
        environment: with SLURM_CONF, and none of a surrounding cluster's variables.
    """

    folder: Path
    environment: dict[str, str]

    def call(self, *words: str) -> str:
        """Run a SLURM command and return what it prints."""
        return subprocess.run(words, env=self.environment, check=True, capture_output=True, text=True).stdout

    def job(self, number: str) -> dict[str, str]:
        """The job's fields, as `scontrol show job` has them."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", "--oneliner", number)))

    def wait(self, number: str, until: Callable[[dict[str, str]], bool], seconds: float, log: Path) -> dict[str, str]:
        """The job's fields once `until` holds for them; fails the test if that takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while not until(job := self.job(number)):
            if time.monotonic() > deadline:
                pytest.fail(f"job {number} is {job['JobState']} after {seconds} s:\n{tail(log)}")
            time.sleep(0.2)
        return job

    def start_node(self, name: str) -> None:
        """Start the daemon of a node that was lost."""
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        marked = {**self.environment, "ULTRALONG_SLURM": str(self.folder)}
        subprocess.Popen(["slurmd", "-D", "-N", name], env=marked, start_new_session=True, **quiet)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    checked = subprocess.run([CLUSTER, "check"], capture_output=True, text=True, check=False)
    if checked.returncode:
        (pytest.fail if os.environ.get("REQUIRE_SLURM") else pytest.skip)(checked.stdout.strip())
    process = subprocess.Popen([CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        folder = process.stdout.readline().strip()
        assert folder, "the cluster did not start; its message is above"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        clean |= {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        yield Cluster(Path(folder), clean)
    finally:
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corpus/ (two files), chats.jsonl and heldout.jsonl, made of this package's sources."""
    root = tmp_path_factory.mktemp("slurm")
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "megatron_ultralong").rglob("*.py"))]
    texts = [text for text in texts if len(text) > 2000]
    (root / "corpus").mkdir()
    for part in range(2):
        rows = [{"text": text, "source": f"half {part}"} for text in texts[part::2]]
        write_lines(root / "corpus" / f"{part}.jsonl", rows)
    write_lines(root / "heldout.jsonl", [{"text": text} for text in texts if len(text) > 6000])
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(400)]
    write_lines(root / "chats.jsonl", [{"messages": chat} for chat in turns])
    return root


@pytest.fixture(scope="session")
def variables(files: Path, cluster: Cluster) -> dict[str, str]:
    """What a user would set to run an example on another cluster with another model."""
    return {
        **cluster.environment,
        "VENV": sys.prefix,
        "MODEL": "examples/tiny_cpu/base",
        "CORPUS": str(files / "corpus"),
        "CHATS": str(files / "chats.jsonl"),
        "HELDOUT": str(files / "heldout.jsonl"),
        "RUN": str(files / "run"),
        "LENGTH": str(LENGTH),
        "SFT_LENGTH": "256",
        "TOTAL_TOKENS": str(STEPS * BATCH * LENGTH),
        "RESAMPLE_OPTIONS": "--short-below 1024 --long-above 2048",
        "HELD_OUT": "0.1",
        "SHARDS": "2",
        "NODES": "2",
        "GPUS_PER_NODE": "1",
        "CPUS_PER_TASK": "1",
        "DATA_CPUS": "1",
        "DEVICE": "cpu",
        "FREE_GB": "1",
        "REHEARSE": "0",  # tests/examples has that
        "TIME_LIMIT": "10",
        "MASTER_ADDR": "127.0.0.1",
        "INTERFACE": "lo",
        "EXTEND_OPTIONS": f"{LAYOUT} --train.steps {STEPS} --train.global_batch_size {BATCH} --checkpoint.interval 10",
        "SFT_OPTIONS": f"{LAYOUT} --train.steps 4 --train.global_batch_size 4",
        "EVALUATE_LENGTHS": "256 512",
        "EVALUATE_TASKS": "recall",
        "EVALUATE_SAMPLES": "2",
        "EVALUATE_NODES": "2",
        "EVALUATE_TIME_LIMIT": "10",
        "EVALUATE_TENSOR": "1",
        "EVALUATE_CONTEXT": "2",
        "PROMPT_OPTIONS": "--depths 2 --grid 2 --lead-in",
        "EVALUATE_OPTIONS": "--windows 1 --lengths 256 512 --stride 64",
    }


Submit = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def submit(variables: dict[str, str]) -> Submit:
    """submit(step, *sbatch options, **variables): examples/slurm/submit.sh -> {step: job number}."""

    def call(step: str, *options: str, **changes: str) -> dict[str, str]:
        done = subprocess.run(
            [ROOT / "examples/slurm/submit.sh", EXAMPLE, step, *options],
            env={**variables, **changes},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(re.findall(r"^(\w+): job (\d+)$", done.stdout, re.MULTILINE))

    return call


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tail(log: Path) -> str:
    """The end of a log, to say why a test failed."""
    return f"--- {log}\n{log.read_text()[-4000:]}" if log.exists() else f"--- {log} does not exist"


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    """Step -> (loss, gradient norm), exactly as written."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "validation" not in row}
