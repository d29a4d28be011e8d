"""Every family's export is what was trained, in the oldest and the newest transformers, beyond the window it once had.

A source states half of what it can: windows in use up to its own length, names of code files, layer types, both
spellings of the rope. What is exported is compared with megatron-core's model over the whole new length
(`--verify logits`), and the two versions with each other.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.rope.scaling import RopeScaling, temperature
from tests.convert import oldest
from tests.convert.loaded import answer
from tests.convert.tiny_models import Build

LENGTH, LONG = 512, 4500
BASE: dict[str, Any] = {"base": 10000.0, "original_length": 64, "factor": 8.0}
ROPES = {
    "paper": RopeScaling(**BASE, kind="yarn"),
    "coded": RopeScaling(**BASE, kind="yarn", form="coded", attention_factor=temperature(8.0)),
    "linear": RopeScaling(**BASE, kind="linear"),
    "ntk": RopeScaling(**BASE, kind="ntk"),
    "dynamic": RopeScaling(**BASE, kind="dynamic-ntk"),
    "lists": RopeScaling(  # an attention factor that its lengths do not give, which no old reader takes
        **BASE, kind="longrope", attention_factor=1.0, short_factors=(1.0,) * 4, long_factors=(1.0, 2.0, 4.0, 8.0)
    ),
    "long": RopeScaling(**BASE | {"factor": 80.0}, kind="yarn"),
}
HALVES: dict[str, dict[str, Any]] = {
    "llama": {"layer_types": ["full_attention"] * 3, "rope_theta": 10000.0},
    "mistral": {"sliding_window": 64, "head_dim": "absent"},
    "qwen2": {
        "sliding_window": 64,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "qwen3": {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0, "layer_types": "absent"},
    "phi3": {"sliding_window": 64},
}
"""What each family's config.json states beside, that holds up to its 64 tokens."""
CASES = [(family, rope) for family in HALVES for rope in ("paper", "coded")]
CASES += [
    ("phi3", "lists"),
    ("mistral", "linear"),
    ("llama", "ntk"),
    ("mistral", "dynamic"),
    ("qwen2", "linear"),
    ("mistral", "long"),
]


def source(build: Build, family: str, folder: Path, **entries: Any) -> Path:
    """A copy of a tiny model with these entries in its config.json, those that are "absent" left out."""
    layers = 1 if entries.get("sliding_window") == "absent" else 3  # the long one costs most
    shutil.copytree(build(family, num_hidden_layers=layers), folder)
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "code.Model"}}
    config |= entries
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return folder


def export(build: Build, root: Path, family: str, rope: str) -> Path:
    """Convert, train nothing, export under the rope that a run would have."""
    halves = HALVES[family] | ({"sliding_window": "absent"} if rope == "long" else {})  # 4,096 to its loader
    convert_hf_to_megatron(hf=source(build, family, root / "hf", **halves), output=root / "m")
    description = Description.read(root / "m")
    dataclasses.replace(description, rope=ROPES[rope], step=1).write(root / "m")
    length = LONG if rope == "long" else LENGTH
    convert_megatron_to_hf(load=root / "m", output=root / "out", verify="logits", verify_length=length)
    assert json.loads((root / "out" / "verification.json").read_text())["tokens"] == length
    return root / "out"


def test_every_export_is_loaded_and_run_by_the_oldest_and_the_newest(build: Build, tmp_path: Path) -> None:
    folders = [export(build, tmp_path / f"{family} {rope}", family, rope) for family, rope in CASES]
    lengths = [LONG if rope == "long" else LENGTH for _, rope in CASES]
    jobs = [
        {"run": str(folder), "length": length, "save": str(folder.parent / "logits.pt")}
        for folder, length in zip(folders, lengths, strict=True)
    ]
    for job in jobs:
        answer(job)
    newest = [torch.load(job["save"], weights_only=True) for job in jobs]
    oldest.run(jobs)
    for job, expected in zip(jobs, newest, strict=True):
        found = torch.load(job["save"], weights_only=True)
        # The two versions order the same sums differently: fp32 rounding, as in --verify logits.
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()), msg=job["run"])


@pytest.mark.parametrize("family", HALVES)
def test_no_half_of_a_setting_is_exported(build: Build, tmp_path: Path, family: str) -> None:
    out = export(build, tmp_path, family, "coded")
    config = json.loads((out / "config.json").read_text())
    assert not {"auto_map", "layer_types", "max_window_layers", "rope_parameters", "dtype"} & config.keys()
    windows = {"sliding_window": None} if family != "llama" else {}
    windows |= {"use_sliding_window": False} if family.startswith("qwen") else {}
    assert {key: value for key, value in config.items() if "window" in key} == windows
    assert config["num_key_value_heads"] == 2 and config["model_type"] == family
    kept = json.loads((tmp_path / "hf" / "config.json").read_text())
    for entry in ("hidden_size", "intermediate_size", "vocab_size", "rms_norm_eps", "bos_token_id"):
        assert config[entry] == kept[entry]


def test_a_window_that_was_left_would_show(build: Build, tmp_path: Path) -> None:
    """What the test above would see, were the window still there."""
    out = export(build, tmp_path, "mistral", "paper")
    config = json.loads((out / "config.json").read_text())
    job = {"run": str(out), "length": LENGTH, "save": str(tmp_path / "logits.pt")}
    answer(job)
    whole = torch.load(job["save"], weights_only=True)
    (out / "config.json").write_text(json.dumps(config | {"sliding_window": 64}))
    answer(job)
    assert (torch.load(job["save"], weights_only=True) - whole).abs().max() > 1e-2 * whole.abs().max()
