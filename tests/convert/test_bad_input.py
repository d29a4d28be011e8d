"""What can be wrong with the input of a conversion: one sentence that names it, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ultralong.convert.formats.hf_folder import INDEX
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.errors import UserError
from tests.convert.tiny_models import Build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hf(build: Build, tmp_path: Path) -> Path:
    """A copy of a sharded tiny Llama, to be broken."""
    return shutil.copytree(build("llama"), tmp_path / "hf")


@pytest.fixture
def megatron(hf: Path, tmp_path: Path) -> Path:
    """A converted checkpoint, to be broken."""
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")
    return tmp_path / "megatron"


def first_shard(hf: Path) -> Path:
    """The first safetensors file of a folder."""
    return min(hf.glob("*.safetensors"))


def edit_json(path: Path, **changes: Any) -> None:
    """Change top-level entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(hf: Path, name: str, tensor: torch.Tensor | None) -> Path:
    """Replace (or drop) one tensor in the file that holds it, leaving the index as it is; returns the file."""
    index = json.loads((hf / INDEX).read_text())["weight_map"]
    path = hf / index.get(name, first_shard(hf).name)
    tensors = load_file(path)
    tensors.pop(name, None)
    save_file(tensors | ({name: tensor} if tensor is not None else {}), path)
    return path


def refuse_hf(hf: Path, *parts: str) -> None:
    """The conversion is refused with a message of these parts, and leaves nothing."""
    output = hf.parent / "out"
    with pytest.raises(UserError) as error:
        convert_hf_to_megatron(hf=hf, output=output)
    for part in parts:
        assert part in str(error.value)
    assert not [path.name for path in hf.parent.iterdir() if "out" in path.name]


def refuse_megatron(load: Path, *parts: str, **options: Any) -> None:
    """The export is refused with a message of these parts, and leaves nothing."""
    output = load.parent / "out"
    with pytest.raises(UserError) as error:
        convert_megatron_to_hf(load=load, output=output, **options)
    for part in parts:
        assert part in str(error.value)
    assert not [path.name for path in load.parent.iterdir() if "out" in path.name]


def test_missing_config(hf: Path) -> None:
    (hf / "config.json").unlink()
    refuse_hf(hf, str(hf / "config.json"), "is missing")


def test_no_weights(hf: Path) -> None:
    for path in hf.glob("model*"):
        path.unlink()
    refuse_hf(hf, str(hf / "model.safetensors"), "is missing", "download or copy it")
    (hf / "pytorch_model.bin").touch()
    refuse_hf(hf, "save the model as safetensors")


def test_missing_shard(hf: Path) -> None:
    path = first_shard(hf)
    path.unlink()
    refuse_hf(hf, str(path), "is missing; download or copy it")


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_shard(hf: Path, kept: int) -> None:
    path = first_shard(hf)
    path.write_bytes(path.read_bytes()[:kept])
    refuse_hf(hf, str(path), "is truncated or not safetensors", "download or copy it again")


def test_missing_index_entry(hf: Path) -> None:
    index = json.loads((hf / INDEX).read_text())
    held_in = index["weight_map"].pop("model.norm.weight")
    (hf / INDEX).write_text(json.dumps(index))
    refuse_hf(hf, str(hf / INDEX), f"the entry of model.norm.weight, which {held_in} holds, is missing")


def test_index_names_what_no_file_holds(hf: Path) -> None:
    path = edit_tensors(hf, "model.norm.weight", None)
    refuse_hf(hf, str(path), "lacks model.norm.weight")


def test_broken_index(hf: Path) -> None:
    edit_json(hf / INDEX, weight_map={})
    refuse_hf(hf, str(hf / INDEX), "weight_map is missing or empty")


def test_wrong_shape(hf: Path) -> None:
    edit_tensors(hf, "model.norm.weight", torch.ones(31))
    refuse_hf(hf, "model.norm.weight has shape [31], but config.json makes it [32]")


def test_config_that_disagrees(hf: Path) -> None:
    edit_json(hf / "config.json", num_hidden_layers=4)
    refuse_hf(hf, "are missing: model.layers.3.input_layernorm.weight", "and 5 more")
    edit_json(hf / "config.json", num_hidden_layers=2)
    refuse_hf(hf, "left over: model.layers.2.")
    edit_json(hf / "config.json", num_hidden_layers=3, vocab_size=102)
    refuse_hf(hf, "model.embed_tokens.weight has shape [101, 32], but config.json makes it [102, 32] (and 1 more)")


def test_sliding_window(hf: Path) -> None:
    edit_json(hf / "config.json", sliding_window=16)
    refuse_hf(hf, "sliding_window 16 (stated, or what llama takes where nothing is)", "set it to null for a model that")
    edit_json(hf / "config.json", use_sliding_window=False)
    convert_hf_to_megatron(hf=hf, output=hf.parent / "out")


def test_quantized_weights(hf: Path) -> None:
    edit_tensors(hf, "model.norm.weight", torch.ones(32, dtype=torch.int8))
    refuse_hf(hf, "model.norm.weight is I8; known: F32, BF16, F16")


def test_tied_in_config_but_not_in_the_file(hf: Path) -> None:
    edit_json(hf / "config.json", tie_word_embeddings=True)
    refuse_hf(hf, "lm_head.weight differs from model.embed_tokens.weight", "tie_word_embeddings")


def test_nan_is_warned_about_and_kept(hf: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_tensors(hf, "model.norm.weight", torch.full((32,), float("nan")))
    convert_hf_to_megatron(hf=hf, output=hf.parent / "m")
    convert_megatron_to_hf(load=hf.parent / "m", output=hf.parent / "back")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.split(": ")[1] for text in warnings] == ["NaN or infinite weights in model.norm.weight"] * 2


def test_existing_output_is_refused_unless_told(hf: Path, megatron: Path) -> None:
    with pytest.raises(UserError, match=r"megatron exists; give another --output, or --overwrite"):
        convert_hf_to_megatron(hf=hf, output=megatron)
    with pytest.raises(UserError, match=r"hf exists; give another --output, or --overwrite"):
        convert_megatron_to_hf(load=megatron, output=hf)
    (megatron / "old.distcp").touch()
    convert_hf_to_megatron(hf=hf, output=megatron, overwrite=True)
    assert not (megatron / "old.distcp").exists()


def test_only_what_a_conversion_wrote_is_replaced(hf: Path, megatron: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    for _ in range(2):
        convert_megatron_to_hf(load=megatron, output=back, overwrite=True)
    for folder in (megatron, back):
        (folder / "notes.txt").write_text("mine")
    said = r"holds notes\.txt, which no conversion wrote and --overwrite would delete; give another --output"
    with pytest.raises(UserError, match=said):
        convert_hf_to_megatron(hf=hf, output=megatron, overwrite=True)
    with pytest.raises(UserError, match=said):
        convert_megatron_to_hf(load=megatron, output=back, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is a file; give another --output"):
        convert_hf_to_megatron(hf=hf, output=tmp_path / "file", overwrite=True)
    assert (megatron / "notes.txt").read_text() == (back / "notes.txt").read_text() == "mine"


def test_not_a_checkpoint(hf: Path) -> None:
    refuse_megatron(hf, f"{hf} is not a Megatron checkpoint", "tools/convert_hf_to_megatron.py")


def test_missing_description(megatron: Path) -> None:
    (megatron / "ultralong.json").unlink()
    refuse_megatron(megatron, str(megatron / "ultralong.json"), "is missing")


def test_a_run_folder_instead_of_a_step(megatron: Path) -> None:
    run = megatron.parent / "run"
    run.mkdir()
    megatron.rename(run / "step_000150")
    refuse_megatron(run, f"give one of them, such as {run / 'step_000150'}")


def test_missing_and_truncated_data_file(megatron: Path) -> None:
    path = megatron / "__1_0.distcp"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refuse_megatron(megatron, f"{path} is truncated ({len(content) - 1} of {len(content)} bytes)")
    path.unlink()
    refuse_megatron(megatron, f"{path} is missing; copy the checkpoint again")


def test_damaged_data_file(megatron: Path) -> None:
    path = megatron / "__1_0.distcp"
    path.write_bytes(b"\0" * path.stat().st_size)
    refuse_megatron(megatron, "decoder.layers.self_attention.linear_qkv.layer_norm_weight is damaged")


def test_damaged_metadata(megatron: Path) -> None:
    path = megatron / ".metadata"
    path.write_bytes(path.read_bytes()[:100])
    refuse_megatron(megatron, f"{path} is damaged")


class _Exploit:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploited",)


def test_metadata_that_names_code_is_refused(megatron: Path) -> None:
    (megatron / ".metadata").write_bytes(pickle.dumps(_Exploit()))
    refuse_megatron(megatron, "posix.system, which no checkpoint needs")


def test_another_tokenizer(hf: Path, tmp_path: Path) -> None:
    (hf / "tokenizer.json").write_text("{}")
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")
    (hf / "tokenizer.json").write_text('{"other": 1}')
    refuse_megatron(tmp_path / "megatron", f"{hf / 'tokenizer.json'} is not the tokenizer of this checkpoint")
    refuse_megatron(tmp_path / "megatron", "none, to take the tokenizer from, is no folder", hf=tmp_path / "none")


def test_companion_files_come_along(hf: Path, tmp_path: Path) -> None:
    for name in ("generation_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model"):
        (hf / name).write_text("{}")
    (hf / "tokenizer_config.json").write_text('{"model_max_length": 5, "x": 1}')
    (hf / "additional_chat_templates").mkdir()
    (hf / "additional_chat_templates" / "tools.jinja").write_text("t")
    (hf / "README.md").write_text("no")
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")
    convert_megatron_to_hf(load=tmp_path / "megatron", output=tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "verification.json",
    }
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"model_max_length": 64, "x": 1}


def test_names_of_code_files_that_do_not_come_along_are_left_out(hf: Path, tmp_path: Path) -> None:
    (hf / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["code.Slow", null]}, "x": 1}')
    edit_json(hf / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})
    (hf / "code.py").write_text("1 / 0")
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")
    convert_megatron_to_hf(load=tmp_path / "megatron", output=tmp_path / "out")
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "out" / name).read_text())
    assert not (tmp_path / "out" / "code.py").exists()


@pytest.mark.parametrize("tool", ["convert_hf_to_megatron.py --hf", "convert_megatron_to_hf.py --load"])
def test_the_tools_exit_with_2_and_one_sentence(
    tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, flag = tool.split()
    monkeypatch.setattr(sys, "argv", [name, flag, str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'none'}") and error.count("\n") == 1
