"""The examples' scripts under a real SLURM of two nodes: to the end, through its warning, and through a lost node."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.conftest import BATCH, LAYOUT, LENGTH, STEPS, Cluster, Submit, losses, tail

pytestmark = pytest.mark.slurm
SHORT = f"{LAYOUT} --train.steps 3 --train.global_batch_size {BATCH}"
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")


def over(job: dict[str, str]) -> bool:
    return job["JobState"] in OVER


def moved(job: dict[str, str]) -> bool:
    """Whether it left its first start behind, and SLURM is done with that."""
    return over(job) or (job["Restarts"] != "0" and job["JobState"] != "COMPLETING")


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster, submit: Submit, variables: dict[str, str]) -> Path:
    """Every step of an example, run to its end; the folder of the run."""
    run = Path(variables["RUN"])
    jobs = submit("all")
    assert list(jobs) == ["preprocess", "pack", "chats", "convert", "prompts", "extend", "sft", "export", "evaluate"]
    for step, number in jobs.items():
        log = run / "logs" / (f"preprocess_{number}_0.log" if step == "preprocess" else f"{step}_{number}.log")
        job = cluster.wait(number, over, 240, log)
        assert job["JobState"] == "COMPLETED", (step, tail(log))
    return run


@pytest.fixture
def beside(pipeline: Path, tmp_path: Path) -> Path:
    """The folder of another run on the same data."""
    for path in (*pipeline.glob("corpus*"), *pipeline.glob("packed*"), pipeline / "megatron"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_every_step_to_a_finished_job(pipeline):
    assert sorted(losses(pipeline / "extend")) == list(range(1, STEPS + 1))
    assert sorted(losses(pipeline / "sft")) == [1, 2, 3, 4]
    exported = json.loads((pipeline / "extended/config.json").read_text())
    assert exported["max_position_embeddings"] == LENGTH
    compared = json.loads((pipeline / "report/compare.json").read_text())
    assert {row["length"] for row in compared["needles"]["needles"]["extended"]} == {LENGTH // 2, LENGTH}
    assert {row["length"] for row in compared["needles"]["needles"]["base"]} == {256}  # the base's context
    assert {row["length"] for row in compared["perplexity"]["perplexity/by_position"]["extended"]} == {256, LENGTH}
    answered = json.loads((pipeline / "answers/extended/run.json").read_text())["backend"]
    assert (answered["name"], answered["tensor"], answered["context"]) == ("megatron", 1, 2)
    logs = "".join(path.read_text() for path in (pipeline / "logs").iterdir())
    assert "examined 2 processes on 2 nodes (n1, n2)" in logs
    assert re.search(r"^CP send: \S+ GB/s at the median, slowest \S+ on n[12] \(rank [01]\)$", logs, re.MULTILINE)
    assert re.search(r"^(warning: )?file: \S+ GB/s at the median, slowest \S+ on n[12] ", logs, re.MULTILINE)
    assert "== sft is finished" in logs


def extend(run: Path, number: str) -> Path:
    return run / "logs" / f"extend_{number}.log"


def test_slurms_warning_saves_and_requeues_bit_for_bit(cluster, submit, pipeline, beside):
    """The limit is drawn near once training runs, since SLURM warns at 30-second ticks; the warning is SLURM's own."""
    wait_for_tick(cluster, before=14)
    number = submit("extend", RUN=str(beside), TIME_LIMIT="30", WARN_SECONDS="90")["extend"]
    log = extend(beside, number)
    cluster.wait(number, lambda job: moved(job) or len(losses(beside / "extend")) >= 3, 90, log)
    cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=2")
    stopped = cluster.wait(number, moved, 90, log)
    assert (stopped["JobState"], stopped["Restarts"]) == ("PENDING", "1"), tail(log)
    assert "== stopped before the time limit" in log.read_text(), tail(log)
    saved = max(int(path.name[5:]) for path in (beside / "extend").glob("step_*"))
    assert 3 <= saved < STEPS and saved == max(losses(beside / "extend")), tail(log)
    cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    job = cluster.wait(number, over, 120, log)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), tail(log)
    assert f"resuming from {beside}/extend/step_{saved:06d}" in log.read_text()
    assert losses(beside / "extend") == losses(pipeline / "extend")


def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(cluster, submit, pipeline, beside):
    number = submit("extend", RUN=str(beside))["extend"]
    log = extend(beside, number)
    cluster.wait(number, lambda job: moved(job) or len(losses(beside / "extend")) >= 13, 120, log)
    lose_node(cluster, "n2")
    done = max(losses(beside / "extend"))
    cluster.wait(number, moved, 90, log)
    cluster.start_node("n2")
    job = cluster.wait(number, over, 150, log)
    assert job["JobState"] == "COMPLETED", tail(log)
    text = log.read_text()
    assert re.search("node failure|queued again", text, re.IGNORECASE), tail(log)
    resumed = [int(step) for step in re.findall(r"resuming from \S*/step_(\d+)", text)]
    assert resumed and done - 10 <= resumed[0] <= done
    assert losses(beside / "extend") == losses(pipeline / "extend")


def test_a_limit_that_comes_before_the_run_has_left_does_not_break_the_chain(cluster, submit, pipeline, beside):
    """Ranks that do not react are killed at the limit; the job is queued again, and what waits for it waits on."""
    number = submit("extend", RUN=str(beside), TIME_LIMIT="30", WARN_SECONDS="1")["extend"]
    words = ["--parsable", f"--dependency=afterok:{number}", "--kill-on-invalid-dep=yes", "--output=/dev/null"]
    waiting = cluster.call("sbatch", *words, "--wrap=true").strip()
    log = extend(beside, number)
    cluster.wait(number, lambda job: moved(job) or len(losses(beside / "extend")) >= 13, 120, log)
    training = [b"-m", b"megatron_ultralong.train"]
    ranks = [pid for pid, _ in processes_of(cluster, "n1", "n2") if words_of(pid)[1:3] == training]
    assert len(ranks) == 2
    with held(ranks):
        cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=1")
        cluster.wait(number, moved, 150, log)
    cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    assert "the time limit came before the run had left" in log.read_text(), tail(log)
    job = cluster.wait(number, over, 150, log)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), tail(log)
    assert losses(beside / "extend") == losses(pipeline / "extend")
    assert cluster.wait(waiting, over, 60, log)["JobState"] == "COMPLETED"


@contextlib.contextmanager
def held(processes: list[int]) -> Iterator[None]:
    """Keep processes from reacting to signals: SLURM sends SIGCONT before each of its own."""
    done = threading.Event()

    def hold() -> None:
        while not done.wait(0.01):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


CONTAINER = """#!/usr/bin/env bash
# COMMAND... in a root of its own, where the Python environment and the model lie at paths that the host does not have.
exec unshare --mount --propagation private bash -c '
mount --rbind / "$ROOT_OF_CONTAINER" && mount -t tmpfs none "$ROOT_OF_CONTAINER/opt" || exit 1
mkdir "$ROOT_OF_CONTAINER/opt/environment" "$ROOT_OF_CONTAINER/opt/model"
mount --bind "$ENVIRONMENT_OF_CONTAINER" "$ROOT_OF_CONTAINER/opt/environment"
mount --bind examples/tiny_cpu/base "$ROOT_OF_CONTAINER/opt/model"
exec chroot "$ROOT_OF_CONTAINER" bash -c "cd \\"\\$0\\" && exec \\"\\$@\\"" "$PWD" "$@"' - "$@"
"""


def test_everything_runs_in_a_container(cluster, submit, tmp_path):
    """SRUN_OPTIONS end in the words that put srun's command into it; nothing is looked for on the host."""
    wrapper = tmp_path / "container.sh"
    wrapper.write_text(CONTAINER)
    wrapper.chmod(0o755)
    (tmp_path / "root").mkdir()
    inside = {"SRUN_OPTIONS": str(wrapper), "VENV": "/opt/environment", "MODEL": "/opt/model"}
    inside |= {"ROOT_OF_CONTAINER": str(tmp_path / "root"), "ENVIRONMENT_OF_CONTAINER": sys.prefix}
    jobs = submit("all", RUN=str(tmp_path / "run"), EXTEND_OPTIONS=SHORT, **inside)
    for step, number in jobs.items():
        name = f"preprocess_{number}_0.log" if step == "preprocess" else f"{step}_{number}.log"
        log = tmp_path / "run/logs" / name
        job = cluster.wait(number, over, 240, log)
        assert job["JobState"] == "COMPLETED", (step, tail(log))
    assert (tmp_path / "run/report/report.html").exists()
    assert not Path("/opt/environment").exists() and not Path("/opt/model").exists()


def wait_for_tick(cluster: Cluster, before: float) -> None:
    """Return about `before` seconds before the slurmctld looks at time limits again, as it does every 30 seconds."""
    log = cluster.folder / "log/slurmctld"
    deadline = time.monotonic() + 60
    while not (ticks := re.findall(r"\[(\S+)\] debug2: Testing job time limits", log.read_text())):
        assert time.monotonic() < deadline, "slurmctld never looked at time limits"
        time.sleep(0.5)
    age = (datetime.datetime.now() - datetime.datetime.fromisoformat(ticks[-1])).total_seconds()
    time.sleep((30 - before - age) % 30)


def processes_of(cluster: Cluster, *nodes: str) -> Iterator[tuple[int, str]]:
    """Process ids of what this cluster's jobs run on these nodes, each with its node."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if f"SLURM_CONF={cluster.folder}/slurm.conf".encode() not in environment:
            continue
        for node in nodes:
            if f"SLURMD_NODENAME={node}".encode() in environment:
                yield int(folder.name), node


def words_of(process: int) -> list[bytes]:
    """Its command line; none of one that has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def lose_node(cluster: Cluster, name: str) -> None:
    """Kill a node's daemon, its job steps and their ranks at once, as a power cut would."""
    ranks = [process for process, _ in processes_of(cluster, name)]
    every = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    daemons = [process for process in every if words_of(process)[:4] == [b"slurmd", b"-D", b"-N", name.encode()]]
    assert ranks and len(daemons) == 1, (ranks, daemons)
    steps = {int(re.findall(r"PPid:\t(\d+)", Path(f"/proc/{rank}/status").read_text())[0]) for rank in ranks}
    for process in (*daemons, *steps - {1}, *ranks):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_a_cancelled_job_is_not_queued_again(cluster, submit, pipeline, beside):
    number = submit("extend", RUN=str(beside))["extend"]
    cluster.wait(number, lambda job: job["JobState"] == "RUNNING", 30, extend(beside, number))
    cluster.call("scancel", number)
    job = cluster.wait(number, over, 60, extend(beside, number))
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")


def test_a_wrong_setting_ends_the_job_at_once(cluster, submit, pipeline, beside):
    """What only the data can show is found by the ranks, and isn't tried again."""
    (beside / "packed").unlink()
    number = submit("extend", RUN=str(beside))["extend"]
    job = cluster.wait(number, over, 60, extend(beside, number))
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0")
    assert f"error: {beside}/packed/manifest.json: the manifest of the packed index is missing" in tail(
        extend(beside, number)
    )
