"""The planner as a user runs it: tables, JSON, a folder that loads and that submit.sh takes, kind messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.checks import check_config
from megatron_ultralong.config.reading import load_config
from tools._plan_folder import times

ROOT = Path(__file__).parents[2]
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return folder


def plan(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "plan_run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)


def test_a_folder_that_loads_and_that_submit_takes(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "plan"
    words = ("--model", model / "config.json", "--length", 4194304, "--gpus", 256, "--hardware", "H100")
    done = plan(*words, "--output", output, "--json", tmp_path / "plans.json")
    assert done.returncode == 0, done.stderr
    for word in ("fastest 10 of", "why others do not", "attention", "the job", "passkey", "submit.sh"):
        assert word in done.stdout
    assert {path.name for path in output.iterdir()} == {
        "extend.toml",
        "sft.toml",
        "settings.sh",
        "plan.json",
        "memory.png",
    }
    extend = load_config(output / "extend.toml")
    check_config(extend, hf_config=LLAMA_8B, world_size=256, inputs=False)
    check_config(load_config(output / "sft.toml"), hf_config=LLAMA_8B, world_size=256, inputs=False)
    found = json.loads((tmp_path / "plans.json").read_text())
    best = found["plans"][0]
    assert best["parallel"]["context"] == extend.parallel.context and len(found["plans"]) == 10
    assert sum(seconds for part, seconds in best["step_seconds"].items() if part != "total") == pytest.approx(
        best["step_seconds"]["total"]
    )
    assert sum(size for part, size in best["memory_bytes"].items() if part != "total") == best["memory_bytes"]["total"]
    assert found["job"]["extend"]["interval"] == extend.checkpoint.interval
    assert json.loads((output / "plan.json").read_text()) == found
    for name in ("corpus", "chats", "heldout.jsonl"):
        (tmp_path / name).mkdir()
    environment = {
        **os.environ,
        "DRY_RUN": "1",
        "VENV": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CORPUS": str(tmp_path / "corpus"),
        "CHATS": str(tmp_path / "chats"),
        "HELDOUT": str(tmp_path / "heldout.jsonl"),
    }
    submitted = subprocess.run(
        ["bash", "examples/slurm/submit.sh", str(output), "all"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert submitted.returncode == 0, submitted.stderr
    parallel = extend.parallel
    assert f"256 processes = TP {parallel.tensor} x CP {parallel.context}" in submitted.stdout
    assert "STAGE=extend sbatch --nodes=32 --ntasks-per-node=8" in submitted.stdout


def test_the_longest_and_the_fewest(model: Path, tmp_path: Path) -> None:
    longest = plan("--model", model, "--gpus", 8, "--longest", "--batch", 1, "--json", tmp_path / "found.json")
    assert 1 <= len(json.loads((tmp_path / "found.json").read_text())["plans"]) <= 3
    assert longest.returncode == 0 and "8 NVIDIA H100 80GB HBM3: " in longest.stdout, longest.stderr
    fewest = plan("--model", model, "--length", 1048576, "--fewest", "--batch", 1)
    assert fewest.returncode == 0 and "1,048,576 tokens: " in fewest.stdout, fewest.stderr


def test_the_layout_of_a_configuration(model: Path, tmp_path: Path) -> None:
    example = ROOT / "examples/llama3.1_8b_4m/extend.toml"
    done = plan("--config", example, "--model", model, "--gpus", 256, "--json", tmp_path / "own.json")
    assert done.returncode == 0 and "TP 8 x CP 16 x PP 1, selective" in done.stdout, done.stderr
    found = json.loads((tmp_path / "own.json").read_text())
    assert found["job"]["run"]["steps"] == 150
    assert plan("--config", example, "--model", model, "--gpus", 200).returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--length", "64", "--gpus", "1"], "--model is missing; give a model's config.json"),
        (
            ["--model", "/nowhere", "--length", "64", "--gpus", "1"],
            "/nowhere/config.json: the model's",
        ),
        (["--model", "MODEL", "--length", "64"], "--gpus is missing; give a whole number"),
        (["--model", "MODEL", "--gpus", "8"], "--length is missing"),
        (["--model", "MODEL", "--gpus", "0", "--length", "64"], "--gpus is 0; give 1 or more"),
        (["--model", "MODEL", "--gpus", "8", "--length", "64", "--hardware", "h10"], "the nearest is h100"),
        (["--model", "MODEL", "--gpus", "8", "--length", "64", "--margin", "1"], "--margin is 1; give a share"),
        (["--model", "MODEL", "--gpus", "8", "--length", "64", "--document", "0"], "--document is 0; give a mean"),
        (["--model", "MODEL", "--gpus", "8", "--length", "16777216"], "fits no layout of 8 NVIDIA H100"),
        (["--model", "BAD", "--gpus", "8", "--length", "64"], "bad.json: hidden_size is 'wide'; give an integer"),
        (
            ["--model", "BERT", "--gpus", "8", "--length", "64"],
            "bert.json: architecture 'BertForMaskedLM' is not known",
        ),
        (["--model", "HEADS", "--gpus", "8", "--length", "64"], "32 is not a multiple of num_key_value_heads 5"),
        (["--model", "MODEL", "--gpus", "8", "--longest", "--fewest"], "--longest and --fewest are given"),
        (["--model", "MODEL", "--gpus", "8", "--length", "64", "--rehearse"], "--rehearse is given without --output"),
        (
            ["--model", "MODEL", "--gpus", "8", "--length", "64", "--output", "HELD"],
            "notes.txt, which would be deleted",
        ),
        (["--model", "MODEL", "--gpus", "8", "--length", "64", "--tokens", "inf"], "--tokens is inf; give a finite"),
        (["--model", "MODEL", "--gpus", "8", "--length", "64", "--mtbf", "inf"], "--mtbf is inf; give a finite"),
        (["--model", "MODEL", "--gpus", "64", "--length", "1048576", "--mtbf", "0.1"], "so the job never ends"),
        (
            ["--model", "MODEL", "--gpus", "8", "--config", "RUN", "--output", "/tmp/x"],
            "--output is given with --config",
        ),
        (["--model", "LIST", "--gpus", "8", "--length", "64"], "no JSON object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_one_sentence(model: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "bad.json").write_text(json.dumps({**LLAMA_8B, "hidden_size": "wide"}))
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bert.json").write_text(json.dumps({**LLAMA_8B, "architectures": ["BertForMaskedLM"]}))
    (tmp_path / "heads.json").write_text(json.dumps({**LLAMA_8B, "num_key_value_heads": 5}))
    (tmp_path / "held").mkdir()
    (tmp_path / "held/notes.txt").touch()
    places = {"MODEL": model, "BAD": tmp_path / "bad.json", "LIST": tmp_path / "list.json"}
    places |= {"BERT": tmp_path / "bert.json", "HEADS": tmp_path / "heads.json", "HELD": tmp_path / "held"}
    places |= {"RUN": ROOT / "examples/llama3.1_8b_4m/extend.toml"}
    done = plan(*(places.get(word, word) for word in words))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_a_length_that_fits_is_named(model: Path) -> None:
    done = plan("--model", model, "--length", 16777216, "--gpus", 8)
    assert done.returncode == 2 and "the longest that fits is " in done.stderr


def test_a_job_has_time_for_its_steps() -> None:
    """Minutes; hours, of which a day holds two; and more than a day."""
    assert times(60.0, 1.5) == (2, 300) and times(600.0, 100.0) == (24, 1800)
    assert times(28_438.0, 1003.0) == (24, 44_457)
    hours, warn = times(100_000.0, 1003.0)
    assert warn > 100_000 and 3600 * hours >= warn + 100_000


def test_no_torch_is_imported(model: Path) -> None:
    code = """
import runpy, sys
try:
    runpy.run_path("tools/plan_run.py", run_name="__main__")
except SystemExit as stopped:
    assert not stopped.code
assert "torch" not in sys.modules
"""
    words = ["--model", str(model), "--length", "131072", "--gpus", "8"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_planned_is_rehearsed(tmp_path: Path) -> None:
    """From a model's file of any name, for the fewest GPUs: the folder, and what a real step of it is like."""
    model, output = tmp_path / "small_llama.json", tmp_path / "plan"
    model.write_text(json.dumps({**LLAMA_8B, "num_hidden_layers": 1}))
    words = ("--model", model, "--length", 131072, "--fewest", "--batch", 1, "--output", output, "--rehearse")
    done = plan(*words)
    assert done.returncode == 0, done.stderr
    assert "Most is needed by rank 0 of 1" in done.stdout
    assert (output / "rehearsal.html").exists() and (output / "rehearsal.json").exists()
    assert str(load_config(output / "extend.toml").model.hf) == "models/small_llama"
