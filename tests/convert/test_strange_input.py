"""Input of the wrong type, damaged descriptions, and an output that would replace what is read: one sentence each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ultralong.convert.formats.hf_folder import INDEX, SINGLE
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.errors import UserError
from tests.convert.test_bad_input import edit_json, hf, megatron, refuse_hf, refuse_megatron

__all__ = ["hf", "megatron"]  # fixtures


def test_an_output_that_would_replace_what_is_read_is_refused(hf: Path, megatron: Path) -> None:
    for output in (hf, hf.parent, hf / ".." / "hf"):
        with pytest.raises(UserError, match=f"is or holds {hf}, which is read; give another --output"):
            convert_hf_to_megatron(hf=hf, output=output, overwrite=True)
    for output, held in ((megatron, megatron), (hf, hf)):  # the tokenizer is read from hf
        with pytest.raises(UserError, match=f"is or holds {held}, which is read"):
            convert_megatron_to_hf(load=megatron, output=output, overwrite=True)
    assert (hf / "config.json").exists() and (megatron / "ultralong.json").exists()


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("architectures", 5, "architectures is 5; give a list of one name, such as LlamaForCausalLM"),
        ("architectures", "LlamaForCausalLM", "architectures is 'LlamaForCausalLM'; give a list"),
        ("architectures", [["x"]], "architectures is [['x']]; give a list"),
        ("sliding_window", "wide", "sliding_window is 'wide'; give null or tokens"),
        (
            "rope_parameters",
            {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]},
            "short_factor and long_factor have 1 numbers, but 8 rotated channels need 4",
        ),
    ],
)
def test_entries_of_another_type(hf: Path, entry: str, value: Any, said: str) -> None:
    edit_json(hf / "config.json", **{entry: value})
    refuse_hf(hf, said)


def test_an_index_entry_that_is_no_file_name(hf: Path) -> None:
    edit_json(hf / INDEX, weight_map={"model.norm.weight": 5})
    refuse_hf(hf, str(hf / INDEX), "the entry of model.norm.weight is 5, no file; download or copy it again")


def test_a_verify_text_that_is_not_read_is_named_before_anything_is_converted(hf: Path) -> None:
    text, output = hf / "none.txt", hf.parent / "out"
    with pytest.raises(UserError, match=r"--verify-text is .*none\.txt, which is no file that can be read; give a"):
        convert_hf_to_megatron(hf=hf, output=output, verify="logits", verify_text=text, dry_run=True)
    with pytest.raises(UserError, match="--verify-text is read by --verify logits, and --verify is checksums"):
        convert_hf_to_megatron(hf=hf, output=output, verify_text=text, dry_run=True)


def test_a_negative_verify_length(hf: Path) -> None:
    with pytest.raises(UserError, match="--verify-length is -3; give 0 or more"):
        convert_hf_to_megatron(hf=hf, output=hf.parent / "out", verify="logits", verify_length=-3)


@pytest.mark.parametrize(
    ("entry", "value"), [("hf_config", None), ("run", 5), ("rope", {"kind": "foo", "base": 1e4, "original_length": 8})]
)
def test_a_description_of_another_type(megatron: Path, entry: str, value: Any) -> None:
    edit_json(megatron / "ultralong.json", **{entry: value})
    refuse_megatron(megatron, "rope kind 'foo' is unknown" if entry == "rope" else f"{entry} is {value!r}")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_companion_that_is_no_object(hf: Path, megatron: Path, name: str) -> None:
    (hf / name).write_text("[]")
    refuse_megatron(megatron, str(hf / name), "is no JSON object; mend or replace it")


def test_metadata_with_flipped_bits_is_one_sentence(megatron: Path) -> None:
    path = megatron / ".metadata"
    content = path.read_bytes()
    at = content.index(b"torch.strided")
    path.write_bytes(content[:at] + b"v" + content[at + 1 :])  # a KeyError in torch
    refuse_megatron(megatron, f"{path} is damaged", "copy the checkpoint again")
    path.unlink()
    path.mkdir()
    refuse_megatron(megatron, f"{path} is damaged (")


def test_deeply_nested_json_is_one_sentence(hf: Path) -> None:
    (hf / "config.json").write_text("[" * 100_000)
    refuse_hf(hf, f"{hf / 'config.json'}: the model's configuration is nested too deeply")


def test_files_beside_the_weights_are_checked(megatron: Path) -> None:
    description = (megatron / "ultralong.json").read_text()
    for name in ("common.pt", "metadata.json"):
        path = megatron / name
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        refuse_megatron(megatron, str(path), "copy the checkpoint again")
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
        refuse_megatron(megatron, str(path), "copy the checkpoint again")
        path.unlink()
        refuse_megatron(megatron, str(megatron))
        path.write_bytes(content)
    edit_json(megatron / "metadata.json", sharded_backend="zarr")
    refuse_megatron(megatron, f"{megatron / 'metadata.json'} says {{'sharded_backend': 'zarr'")
    assert (megatron / "ultralong.json").read_text() == description


def test_a_flipped_bit_of_a_weight_is_seen(megatron: Path) -> None:
    path = megatron / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refuse_megatron(megatron, "is damaged", f"{path} does not have the checksum that it was written with")
    convert_megatron_to_hf(load=megatron, output=megatron.parent / "unchecked", verify="none")


def test_a_single_file_beside_an_index_of_others_is_refused_naming_both(hf: Path) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, hf / SINGLE)
    refuse_hf(hf, f"{hf} holds model.safetensors and model.safetensors.index.json, whose files are others (model-0000")
    (hf / INDEX).unlink()
    for path in hf.glob("model-*"):
        path.unlink()
    (hf / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": SINGLE}}))
    refuse_hf(hf, "are missing: ")  # the index names the one file: no contradiction, but it lacks the rest


def test_two_files_that_hold_one_tensor_are_refused_naming_both(hf: Path) -> None:
    index = json.loads((hf / INDEX).read_text())["weight_map"]
    other = next(file for file in index.values() if file != index["model.norm.weight"])
    tensors = load_file(hf / other)
    save_file({**tensors, "model.norm.weight": torch.ones(32)}, hf / other)
    files = sorted((other, index["model.norm.weight"]))
    refuse_hf(hf, f"{hf / files[0]} and {hf / files[1]} both hold model.norm.weight; remove one of them")


@pytest.mark.parametrize("place", ["../away", "/tmp", "down", ".", ".."])
def test_an_index_that_leads_out_of_the_folder_is_refused(hf: Path, place: str) -> None:
    index = json.loads((hf / INDEX).read_text())
    file = index["weight_map"]["model.norm.weight"]
    away = f"{place}/{file}" if place.strip(".") else place
    index["weight_map"]["model.norm.weight"] = away
    (hf / INDEX).write_text(json.dumps(index))
    refuse_hf(hf, f"{hf / INDEX}: the entry of model.norm.weight is {away!r}, no plain file name beside the index")


def test_links_into_a_cache_are_followed(hf: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in hf.glob("*.safetensors"):
        path.rename(blobs / path.name)
        path.symlink_to(Path("..") / "blobs" / path.name)
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")


def test_a_mean_of_a_checkpoint_and_itself_is_refused(megatron: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "link").symlink_to(megatron)
    monkeypatch.chdir(tmp_path)
    for other in (megatron, tmp_path / "link", Path("megatron"), megatron / ".." / "megatron"):
        said = f"{other} and {megatron} are one folder; name each checkpoint of --average once"
        refuse_megatron(megatron, said, average=(other,))
    copy = shutil.copytree(megatron, tmp_path / "copy")
    refuse_megatron(megatron, "are one folder", average=(copy, copy))
    convert_megatron_to_hf(load=megatron, average=(copy,), output=tmp_path / "mean")
