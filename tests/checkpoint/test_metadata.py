"""What a checkpoint's pickles may name: all that real ones hold, and nothing else, whoever loads them."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import pickle
import pkgutil
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint

from megatron_ultralong.checkpoint.loading import load_sharded
from megatron_ultralong.checkpoint.metadata import _NAMES, check_pickles, read_metadata
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.engine import groups, mcore
from megatron_ultralong.engine.checkpoint_writer import CheckpointWriter
from megatron_ultralong.errors import UserError
from tests.convert.tiny_models import build_model

KEY = "decoder.final_layernorm.weight"


class Touch:
    """Unpickles as a shell command that leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that conversion wrote."""
    root = tmp_path_factory.mktemp("metadata")
    convert_hf_to_megatron(hf=build_model(root / "hf", "llama"), output=root / "megatron")
    return root / "megatron"


@pytest.fixture
def checkpoint(converted: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return shutil.copytree(converted, tmp_path / "megatron")


def sharded() -> dict[str, Any]:
    """What asks for one tensor of it."""
    return {"norm": mcore.ShardedTensor.from_rank_offsets(KEY, torch.zeros(32))}


def save(folder: Path, background: bool) -> None:
    """A checkpoint as training writes it: megatron-core's writer; tensors, plain values and an object."""
    folder.mkdir()
    scheduler = {"scheduler": {"max_lr": 1e-3, "steps": 5}, "step": 3}
    shard = mcore.ShardedTensor.from_rank_offsets("wide", torch.ones(2, 3).bfloat16(), (0, 0, 1), prepend_axis_num=1)
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    thing = ShardedObject("thing", {"a": 1}, (1,), (0,))
    writer = CheckpointWriter()
    request, failure = writer.plan({**sharded(), "wide": shard, "thing": thing, **scheduler}, str(folder))
    assert failure is None
    if background:
        writer.start(request)
        assert writer.finished(wait=True)
    else:
        writer.write(request)


def named(path: Path) -> set[tuple[str, str]]:
    """Every (module, name) in a pickle."""
    found = set()

    class Recording(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found.add((module, name))
            return super().find_class(module, name)

    with path.open("rb") as stream:
        Recording(stream).load()
    return found


@pytest.mark.parametrize("background", [False, True])
def test_real_checkpoints_name_what_is_listed(converted: Path, tmp_path: Path, background: bool) -> None:
    with groups.single_process():
        save(tmp_path / "step", background)
        loaded = load_sharded(sharded(), tmp_path / "step")
    assert loaded["step"] == 3 and not loaded["norm"].any()
    names = named(tmp_path / "step" / ".metadata") | named(converted / ".metadata")
    assert {name for name in names if not isinstance(getattr(torch, name[1], None), torch.dtype)} <= _NAMES
    for folder in (converted, tmp_path / "step"):
        assert KEY in read_metadata(folder / ".metadata").state_dict_metadata
        check_pickles(folder, [KEY, "thing"])


def classes() -> list[type]:
    """Every class that torch.distributed.checkpoint and megatron-core's dist_checkpointing define."""
    found = set()
    for package in ("torch.distributed.checkpoint", "megatron.core.dist_checkpointing"):
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, package + "."):
            try:
                members = vars(importlib.import_module(module.name)).values()
            except ImportError:  # a backend that is not installed
                continue
            found |= {value for value in members if inspect.isclass(value) and value.__module__.startswith(package)}
    return sorted(found, key=lambda value: (value.__module__, value.__qualname__))


def test_every_other_class_of_theirs_is_refused(tmp_path: Path) -> None:
    others = [value for value in classes() if (value.__module__, value.__qualname__) not in _NAMES]
    assert len(others) > 100
    for value in others:
        module, name = value.__module__, value.__qualname__
        (tmp_path / "x").write_bytes(b"\x80\x04" + f"c{module}\n{name}\n.".encode())
        with pytest.raises(UserError, match=f"names {module}.{name}, which no checkpoint needs"):
            read_metadata(tmp_path / "x")


@pytest.mark.parametrize("name", ["os system", "builtins eval", "torch load", "functools partial", "torch.hub load"])
def test_a_name_that_runs_code_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x04c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(UserError, match="which no checkpoint needs"):
        read_metadata(tmp_path / "x")


def spoil(folder: Path, kind: str, mark: Path) -> None:
    """Put code where `kind` says."""
    if kind == ".metadata":
        (folder / kind).write_bytes(pickle.dumps(Touch(mark)))
    elif kind == "common.pt":
        torch.save(Touch(mark), folder / kind)
    else:  # a tensor that is described as an object, which DCP unpickles without weights_only
        metadata = read_metadata(folder / ".metadata")
        content = io.BytesIO()
        torch.save(Touch(mark), content)
        (folder / "evil.distcp").write_bytes(content.getvalue())
        metadata.state_dict_metadata[KEY] = torch.distributed.checkpoint.metadata.BytesStorageMetadata()
        index = torch.distributed.checkpoint.metadata.MetadataIndex(KEY)
        for stale in [other for other in metadata.storage_data if other.fqn == KEY]:
            del metadata.storage_data[stale]
        info = torch.distributed.checkpoint.filesystem._StorageInfo("evil.distcp", 0, len(content.getvalue()))
        metadata.storage_data[index] = info
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (".metadata", r"\.metadata is damaged \(it names posix\.system, which no checkpoint needs\)"),
        ("common.pt", r"common\.pt is damaged, or holds more than plain values"),
        ("entry", r"evil\.distcp is damaged, or holds more than plain values"),
    ],
)
def test_training_refuses_code_before_megatron_core_reads_it(
    checkpoint: Path, tmp_path: Path, kind: str, said: str
) -> None:
    mark = tmp_path / "mark"
    spoil(checkpoint, kind, mark)
    with groups.single_process(), pytest.raises(UserError, match=said):
        load_sharded(sharded(), checkpoint)
    assert not mark.exists()
    with groups.single_process():  # and what it would have done
        try:
            mcore.dist_checkpointing.load(sharded(), str(checkpoint))
        except (Exception, torch.distributed.checkpoint.CheckpointException):
            pass
    assert mark.exists() == (kind == ".metadata")
