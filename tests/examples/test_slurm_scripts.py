"""What examples/slurm says without a cluster: how to use it, and what is wrong, in one sentence and at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from examples.slurm import health
from tests.examples.test_examples import MODELS, ROOT

EXAMPLE = "examples/llama3.1_8b_1m"
NO_SBATCH = "error: sbatch is not on this machine"
SBATCH = sorted((ROOT / "examples/slurm").glob("*.sbatch"))


def bash(*words: str | Path, where: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as on a machine without SLURM, with these variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    clean |= {"VENV": sys.prefix, **variables}
    return subprocess.run(["bash", *words], cwd=where, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """What a user provides."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(MODELS["models/Llama-3.1-8B-Instruct"]))
    (tmp_path / "text.jsonl").write_text("{}\n")
    given = dict.fromkeys(("CORPUS", "CHATS", "HELDOUT"), str(tmp_path / "text.jsonl"))
    return {**given, "MODEL": str(tmp_path / "model"), "RUN": str(tmp_path / "run"), "DRY_RUN": "1"}


def test_all_steps_wait_for_what_they_need(files):
    done = bash("examples/slurm/submit.sh", EXAMPLE, "all", "--partition=big", **files)
    assert done.returncode == 0, done.stderr
    needs = dict(re.findall(r"^STAGE=(\w+) sbatch .*?(?:--dependency=afterok:(\S+) .*)?$", done.stdout, re.MULTILINE))
    assert needs == {
        "preprocess": "",
        "pack": "preprocess",
        "chats": "",
        "convert": "",
        "prompts": "",
        "extend": "pack:convert",
        "sft": "extend:chats",
        "export": "sft",
        "evaluate": "export:prompts",
    }
    (extend,) = (line for line in done.stdout.splitlines() if line.startswith("STAGE=extend"))
    for word in ("--nodes=32", "--exclusive", "--mem=0", "--gres=gpu:8", "--signal=USR1@300", "--partition=big"):
        assert f" {word} " in extend
    (evaluate,) = (line for line in done.stdout.splitlines() if line.startswith("STAGE=evaluate"))
    for word in ("--nodes=4", "--ntasks-per-node=8", "--exclusive", "--mem=0", "--gres=gpu:8"):
        assert f" {word} " in evaluate
    assert "256 processes = TP 8 x CP 4 x PP 1 x DP 8; 8 samples of 1,048,576 tokens a step, 120 steps" in done.stdout


def test_a_second_source_of_short_documents(files):
    """Its place is put in by the settings, and its size belongs to them; one source has no such words."""
    mixed = f"{EXAMPLE}_mixed"
    done = bash("examples/slurm/submit.sh", mixed, "extend", **files)
    assert done.returncode == 0, done.stderr
    assert "8 samples of 1,048,576 tokens a step, 125 steps, 1.05B tokens" in done.stdout
    echo = 'source examples/slurm/common.sh && train_options extend && echo "${TRAIN_OPTIONS[@]}"'
    words = [bash("-c", echo, EXAMPLE=example, **files).stdout for example in (mixed, EXAMPLE)]
    assert f" --data.sources.1.index {files['RUN']}/packed_short " in words[0] and "sources.1" not in words[1]
    done = bash("examples/slurm/submit.sh", mixed, "extend", **files, SHORT_LENGTH="4K")
    assert done.returncode == 2 and "error: SHORT_LENGTH is '4K'; give a whole number above 0" in done.stderr


@pytest.mark.parametrize(
    ("words", "changes", "wanted"),
    [
        (["examples/nowhere", "all"], {}, "error: examples/nowhere/settings.sh is missing; give a folder such as"),
        (
            [EXAMPLE, "train"],
            {},
            "error: 'train' is no step; give one of: preprocess pack chats convert prompts",
        ),
        (
            [EXAMPLE, "all"],
            {"MODEL": "gone"},
            "error: gone/config.json: no such file of a model in Hugging Face format",
        ),
        ([EXAMPLE, "preprocess"], {"CORPUS": "gone"}, "error: gone: no such file or folder of documents; set CORPUS"),
        ([EXAMPLE, "extend"], {"NODES": "three"}, "error: NODES is 'three'; give a whole number above 0"),
        ([EXAMPLE, "extend"], {"NODES": "3"}, "error: 24 processes are no multiple of parallel.tensor 8 x"),
        (
            [EXAMPLE, "extend"],
            {"EXTEND_OPTIONS": "--train.stpes 4"},
            "error: --train.stpes is not a field, the nearest",
        ),
        (
            [EXAMPLE, "evaluate"],
            {"EVALUATE_NODES": "2"},
            "error: 16 processes are not EVALUATE_TENSOR 8 x EVALUATE_CONTEXT 4; mend these, or EVALUATE_NODES, in",
        ),
        (
            [EXAMPLE, "prompts"],
            {"EVALUATE_SAMPLES": "x"},
            "error: EVALUATE_SAMPLES is 'x'; give a whole number above 0",
        ),
        ([EXAMPLE, "extend"], {"LENGTH": "1000004"}, "not divisible by 2 x parallel.context"),
        ([EXAMPLE, "extend"], {"VENV": "gone"}, "error: gone/bin/python is missing on"),
        ([EXAMPLE, "extend"], {"DRY_RUN": "", "PATH": "/usr/bin:/bin"}, NO_SBATCH),
    ],
)
def test_submit_says_what_is_wrong(files, words, changes, wanted):
    if wanted == NO_SBATCH and shutil.which("sbatch", path=changes["PATH"]):
        pytest.skip("SLURM is on this machine")
    done = bash("examples/slurm/submit.sh", *words, **{**files, **changes})
    assert done.returncode == 2, done.stdout
    assert wanted in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not Path(files["RUN"]).exists()


def test_a_step_is_rehearsed_before_it_is_submitted(files: dict[str, str], tmp_path: Path) -> None:
    """With a stand-in for sbatch that notes its calls: what does not fit never reaches it."""
    calls = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(f'#!/bin/sh\necho "$STAGE" >> {calls}; echo 7\n')
    (tmp_path / "bin/sbatch").chmod(0o755)
    config = {**MODELS["models/Llama-3.1-8B-Instruct"], "num_hidden_layers": 1}
    Path(files["MODEL"], "config.json").write_text(json.dumps(config))
    given = {**files, "DRY_RUN": "", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "LENGTH": "65536"}
    done = bash("examples/slurm/submit.sh", EXAMPLE, "extend", **given)
    assert done.returncode == 0, done.stderr
    assert "Most is needed by rank 0 of 256 (context 1 of 4): " in done.stdout and "extend: job 7" in done.stdout
    small = bash("examples/slurm/submit.sh", EXAMPLE, "extend", **given, GPU_MEMORY="1")
    assert small.returncode == 2 and "and of 1 GB a GPU has 0.9 for tensors" in small.stderr, small.stderr
    assert "Traceback" not in small.stderr and calls.read_text() == "extend\n"
    anyway = bash("examples/slurm/submit.sh", EXAMPLE, "extend", **given, GPU_MEMORY="1", REHEARSE="0")
    assert anyway.returncode == 0 and calls.read_text() == "extend\nextend\n"


def test_submit_explains_itself():
    shown = bash("examples/slurm/submit.sh", "--help")
    assert shown.returncode == 0 and "examples/slurm/submit.sh EXAMPLE STEP [sbatch option...]" in shown.stdout
    assert bash("examples/slurm/submit.sh").returncode == 2


@pytest.mark.parametrize("script", SBATCH, ids=lambda path: path.name)
def test_a_script_alone_says_how_it_wants_to_be_started(script, tmp_path):
    done = bash(script)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: EXAMPLE is not set; submit with examples/slurm/submit.sh FOLDER STEP, which sets it\n"
    elsewhere = bash(script, where=tmp_path)
    assert (elsewhere.returncode, elsewhere.stdout) == (2, "")
    assert elsewhere.stderr == f"error: {tmp_path} isn't the repository's root; use submit.sh\n"


def examine(rank: int, port: int, *words: str) -> subprocess.Popen[str]:
    variables = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURMD_NODENAME": f"n{rank + 1}"}
    command = [sys.executable, str(ROOT / "examples/slurm/health.py"), "--device", "cpu", *words]
    environment = {**os.environ, **variables, "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_nodes_in_order_pass(tmp_path, port):
    both = [examine(rank, port, "--folder", str(tmp_path)) for rank in range(2)]
    shown = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert shown[0].startswith("examined 2 processes on 2 nodes (n1, n2): all-reduce of 64 MiB in ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--folder", "{root}/file"], "error: node n1: {root}/file cannot be written (File exists); RUN must be on a"),
        (["--folder", "{root}", "--free-gb", "1e9"], "less than FREE_GB=1000000000; make room, or lower FREE_GB"),
        (["--folder", "{root}", "--timeout", "2"], "after 2 s there is no word of 1 of 2 processes, those of node 1"),
    ],
)
def test_a_bad_node_is_named(tmp_path, port, words, wanted):
    (tmp_path / "file").touch()
    process = examine(0, port, *(word.format(root=tmp_path) for word in words))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert wanted.format(root=tmp_path) in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("0, NVIDIA H100 80GB HBM3, 4, 0\n1, NVIDIA H100 80GB HBM3, 4, 0\n", []),
        ("0, NVIDIA RTX A6000, 4, [N/A]\n1, NVIDIA RTX A6000, 4, [N/A]\n", []),
        ("0, NVIDIA H100 80GB HBM3, 4, 0\n", ["1 GPUs for 2 processes"]),
        (
            "0, NVIDIA H100 80GB HBM3, 70123, 0\n1, NVIDIA H100 80GB HBM3, 4, 3\n",
            ["GPU 0 (NVIDIA H100 80GB HBM3) has 70123 MiB in use", "GPU 1 (NVIDIA H100 80GB HBM3) has 3 uncorrected"],
        ),
        (None, ["nvidia-smi does not answer"]),
    ],
)
def test_gpu_findings(answer, wanted):
    found = list(health.gpu_findings(answer, wanted=2))
    assert len(found) == len(wanted)
    for sentence, beginning in zip(found, wanted, strict=True):
        assert sentence.startswith(beginning)


def test_the_groups_whose_speed_is_measured_are_megatron_cores():
    from megatron.core.parallel_state import RankGenerator

    from examples.slurm import speed

    ranks = RankGenerator(tp=2, ep=1, dp=3, pp=2, cp=4, order="tp-cp-ep-dp-pp")
    assert speed.groups(48, 2, 4) == (ranks.get_ranks("tp"), ranks.get_ranks("cp"))


def test_a_slow_node_is_named():
    from examples.slurm import speed

    rows = [[100.0, 50.0, 300.0, 2.0], [101.0, 20.0, 290.0, 0.0], [99.0, 51.0, 310.0, 1.9], [98.0, 49.0, 305.0, 0.0]]
    assert list(speed.report(rows, ["n1", "n1", "n2", "n2"])) == [
        "TP all-gather: 99.5 GB/s at the median, slowest 98 on n2 (rank 3)",
        "warning: CP send: 49.5 GB/s at the median, slowest 20 on n1 (rank 1): every step waits for it; "
        "look at that node",
        "attention block: 302 TFLOPS at the median, slowest 290 on n1 (rank 1)",
        "file: 1.95 GB/s at the median, slowest 1.9 on n2 (rank 2)",
    ]


def test_nothing_is_looked_for_on_the_host_of_a_container(files):
    done = bash(
        "examples/slurm/submit.sh",
        EXAMPLE,
        "all",
        **{
            **files,
            "SRUN_OPTIONS": "--container-image=x",
            "VENV": "/nowhere",
            "MODEL": "/inside/model",
            "CORPUS": "/c",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "extend: the job itself checks its settings, in what SRUN_OPTIONS names" in done.stdout
