"""Rows against whole tensors: the library's own readers and writers are the slow twins."""

from __future__ import annotations

import dataclasses
import fractions
import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.formats.blob import find_values, write_blob
from megatron_ultralong.convert.formats.row_stream import Tally
from megatron_ultralong.convert.formats.safetensors_file import Writer, read_header
from megatron_ultralong.convert.formats.torch_dist import Reader
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.convert.proof.logits import Verification, verify_logits
from megatron_ultralong.errors import UserError
from tests.convert.test_round_trip import assert_same, weights
from tests.convert.tiny_models import Build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (1, 3, 4)])
def test_a_blob_is_what_torch_load_reads(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor, file = torch.randn(shape).to(dtype), io.BytesIO()
    file.write(b"before")
    length = write_blob(file, dtype, shape, iter(tensor.flatten(0, -2).split(1) if len(shape) > 1 else [tensor]))
    blob = io.BytesIO(file.getvalue()[6:])
    assert len(blob.getvalue()) == length
    loaded = torch.load(blob, weights_only=True)
    assert loaded.dtype == dtype and torch.equal(loaded, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_of_torch_saves_own_blobs_are_found(dtype: torch.dtype) -> None:
    tensor, file = torch.randn(3, 4).to(dtype), io.BytesIO()
    torch.save(tensor, file)
    place = find_values(file)
    assert place is not None and (place.dtype, place.shape) == (dtype, (3, 4))
    data = file.getvalue()[place.offset : place.offset + tensor.numel() * dtype.itemsize]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=dtype).view(3, 4), tensor)


@pytest.mark.parametrize(
    "tensor", [torch.randn(4, 3).t(), torch.randn(9)[2:5], torch.arange(3), torch.nn.Parameter(torch.ones(2))]
)
def test_what_is_no_plain_tensor_is_left_to_torch_load(tensor: torch.Tensor) -> None:
    file = io.BytesIO()
    torch.save(tensor, file)
    assert find_values(file) is None


def test_safetensors_reads_what_is_written_by_rows(tmp_path: Path) -> None:
    expected = {"a": torch.randn(3, 5).bfloat16(), "b": torch.randn(4), "c": torch.randn(2, 2).half()}
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in expected.items()}
    with Writer(tmp_path / "x.safetensors", header) as out:
        for row in expected["a"].split(1):
            out.add("a", row)
        out.add("c", expected["c"])
        out.add("b", expected["b"])
    assert_same(load_file(tmp_path / "x.safetensors"), expected)
    found = read_header(tmp_path / "x.safetensors")
    assert all(offset % dtype.itemsize == 0 for _, dtype, offset in found.values())


def test_blocks_smaller_than_a_span_change_nothing(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_hf_to_megatron(hf=build("phi3"), output=tmp_path / "whole")
    monkeypatch.setattr("megatron_ultralong.convert.formats.row_stream.CHUNK", 300)  # two rows of 32 in fp32
    convert_hf_to_megatron(hf=build("phi3"), output=tmp_path / "rows")
    for path in (tmp_path / "whole").glob("*.distcp"):
        assert path.read_bytes() == (tmp_path / "rows" / path.name).read_bytes()
    convert_megatron_to_hf(load=tmp_path / "rows", output=tmp_path / "hf")
    assert_same(weights(build("phi3")), weights(tmp_path / "hf"))


def test_workers_change_no_bit(build: Build, tmp_path: Path) -> None:
    source = build("qwen2", torch.bfloat16)
    for workers in (1, 2):
        load, output = tmp_path / f"m{workers}", tmp_path / f"hf{workers}"
        convert_hf_to_megatron(hf=source, output=load, workers=workers)
        convert_megatron_to_hf(load=load, output=output, max_shard_size=30e-6, workers=workers)
    for pattern in ("m1/*.distcp", "m1/.metadata", "hf1/*"):
        for path in tmp_path.glob(pattern):
            twin = tmp_path / path.parent.name.replace("1", "2") / path.name
            assert path.read_bytes() == twin.read_bytes(), path
    assert_same(weights(source), weights(tmp_path / "hf2"))


def test_a_tally_sees_nan_and_infinity_anywhere() -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            rows, tally = torch.randn(4, 3).to(dtype), Tally()
            tally.add("good", rows)
            rows[2, 1] = value
            tally.add("bad", rows)
            assert tally.not_finite == {"bad"}


def rewrite(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Change the tensors of a Hugging Face folder in place."""
    for path in folder.glob("*.safetensors"):
        tensors = {name: change(name, tensor).clone() for name, tensor in load_file(path).items()}
        path.unlink()  # load_file maps it
        save_file(tensors, path)


def test_an_average_is_the_mean_in_fp64(build: Build, tmp_path: Path) -> None:
    folders = []
    for number in range(3):
        source = shutil.copytree(build("llama", torch.bfloat16), tmp_path / f"hf{number}")
        rewrite(source, lambda _, tensor, number=number: (tensor.float() * (1 + number / 7)).bfloat16())
        convert_hf_to_megatron(hf=source, output=tmp_path / f"m{number}")
        folders.append(tmp_path / f"m{number}")
    convert_megatron_to_hf(load=folders[0], average=tuple(folders[1:]), output=tmp_path / "mean")
    sources = [weights(tmp_path / f"hf{number}") for number in range(3)]
    twin = {name: torch.stack([s[name].double() for s in sources]).mean(0).bfloat16() for name in sources[0]}
    assert_same(weights(tmp_path / "mean"), twin)
    description = Description.read(folders[1])
    dataclasses.replace(description, tokenizer_fingerprint="other").write(folders[1])
    with pytest.raises(UserError, match=r"m1: its tokenizer_fingerprint is not that of .*m0; average checkpoints"):
        convert_megatron_to_hf(load=folders[0], average=(folders[1],), output=tmp_path / "no")
    with pytest.raises(UserError, match=r"--verify logits compares with one checkpoint"):
        convert_megatron_to_hf(load=folders[0], average=(folders[2],), output=tmp_path / "no", verify="logits")


def test_pickles_only_when_asked_for(build: Build, tmp_path: Path) -> None:
    source = shutil.copytree(build("llama"), tmp_path / "hf")
    expected = weights(source)
    for path in source.glob("model*"):
        path.unlink()
    for zipped in (True, False):
        torch.save(expected, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"save the model as safetensors, or give --allow-pickle"):
            convert_hf_to_megatron(hf=source, output=tmp_path / "m", overwrite=True)
        convert_hf_to_megatron(hf=source, output=tmp_path / "m", overwrite=True, allow_pickle=True)
        convert_megatron_to_hf(load=tmp_path / "m", output=tmp_path / "back", overwrite=True)
        assert_same(expected, weights(tmp_path / "back"))
        shutil.rmtree(tmp_path / "m")
    torch.save({"x": fractions.Fraction(1)}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged, or holds more than weights"):
        convert_hf_to_megatron(hf=source, output=tmp_path / "m", allow_pickle=True)


def test_a_dry_run_writes_nothing_and_says_all(build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = build("llama", torch.bfloat16)
    convert_hf_to_megatron(hf=source, output=tmp_path / "m", dry_run=True)
    assert "decoder.layers.mlp.linear_fc1.weight  [3, 96, 32] bf16  18.4 KB  <- model.layers.{layer}.mlp.gate_proj" in (
        caplog.text
    )
    assert "writes 5 .distcp files (59.5 KB)" in caplog.text
    assert not list(tmp_path.iterdir())
    convert_hf_to_megatron(hf=source, output=tmp_path / "m")
    caplog.clear()
    convert_megatron_to_hf(load=tmp_path / "m", output=tmp_path / "hf", dry_run=True, max_shard_size=30e-6)
    convert_megatron_to_hf(load=tmp_path / "m", output=tmp_path / "hf", max_shard_size=30e-6)
    for path in (tmp_path / "hf").iterdir():
        assert path.name in caplog.text


def test_logits_name_the_tensor_that_differs(build: Build, tmp_path: Path) -> None:
    source = shutil.copytree(build("llama"), tmp_path / "hf")
    convert_hf_to_megatron(hf=source, output=tmp_path / "m", verify="logits")
    description = Description.read(tmp_path / "m")
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight"):
        other = shutil.copytree(source, tmp_path / name)
        rewrite(other, lambda key, tensor, name=name: tensor.flip(0) if key == name else tensor)
        with pytest.raises(UserError, match=f"which is not rounding; they part at [a-z0-9 ]*: {name} "):
            verify_logits(Verification(other, tmp_path / "m", length=64))
    assert description == Description.read(tmp_path / "m")


def test_a_reader_assembles_rows_of_any_pieces(build: Build, tmp_path: Path) -> None:
    convert_hf_to_megatron(hf=build("llama"), output=tmp_path / "m")
    reader = Reader(tmp_path / "m")
    whole = reader.rows("decoder.layers.mlp.linear_fc2.weight", 0, 32, 1).clone()
    some = reader.rows("decoder.layers.mlp.linear_fc2.weight", 5, 9, 1)
    assert torch.equal(whole[5:9], some)
