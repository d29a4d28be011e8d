"""A run that is stopped and started again goes on where it was: the same losses, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.data.reading.blend import BlendedDataset, Position
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.training import checkpoints
from tests.convert.tiny_models import build_model
from tests.training.conftest import Train
from tests.training.jobs import Job


@pytest.mark.gloo
@pytest.mark.parametrize(("precision", "distributed"), [("fp32", "false"), ("bf16", "false"), ("bf16", "true")])
def test_resumed_run_repeats_the_uninterrupted_one(
    train: Train, tmp_path: Path, precision: str, distributed: str
) -> None:
    words = ["--train.precision", precision, "--optimizer.warmup_steps", "1", "--optimizer.decay", "cosine"]
    words += ["--parallel.distributed_optimizer", distributed]
    whole = train(2, *words, "--parallel.context", "2", "--train.steps", "4", "--checkpoint.save", str(tmp_path / "a"))
    saved = tmp_path / "b"
    halves = ["--parallel.context", "2", "--train.steps", "4", "--checkpoint.save", str(saved)]
    train(2, *words, *halves, "--checkpoint.interval", "2")
    (saved / "step_000004").rename(tmp_path / "gone")
    resumed = train(2, *words, *halves)
    assert [row["step"] for row in resumed] == [3, 4]
    for row, wanted in zip(resumed, whole[2:], strict=True):
        assert (row["loss"], row["grad_norm"]) == (wanted["loss"], wanted["grad_norm"])
    description = json.loads((saved / "step_000004" / "ultralong.json").read_text())
    assert description["step"] == 4
    assert (description["rope"]["kind"], description["rope"]["factor"]) == ("yarn", 2.0)
    assert description["run"]["train"]["precision"] == precision


@pytest.mark.gloo
def test_resumes_under_another_layout(train: Train, tmp_path: Path) -> None:
    words = ["--train.steps", "3", "--checkpoint.save", str(tmp_path / "run")]
    whole = train(1, "--train.steps", "3")
    train(1, *words, "--checkpoint.interval", "2")
    (tmp_path / "run" / "step_000003").rename(tmp_path / "gone")
    (resumed,) = train(2, *words, "--parallel.tensor", "2")
    assert resumed["loss"] == pytest.approx(whole[2]["loss"], rel=1e-5)
    assert resumed["grad_norm"] == pytest.approx(whole[2]["grad_norm"], rel=1e-5)


FP32, BF16 = ["--train.precision", "fp32"], ["--train.precision", "bf16"]
SPREAD = ["--parallel.distributed_optimizer", "true"]
TP2, CP2, PP2 = (["--parallel." + axis, "2"] for axis in ("tensor", "context", "pipeline"))


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([*FP32, *SPREAD], [*FP32, *TP2]),
        ([*FP32, *PP2], [*FP32, *SPREAD, *CP2]),
        pytest.param([*FP32, *TP2], [*FP32, *SPREAD], marks=pytest.mark.slow),
        pytest.param([*FP32, *SPREAD, *CP2], [*FP32, *PP2], marks=pytest.mark.slow),
        pytest.param([*FP32, *SPREAD, *TP2], [*FP32, *SPREAD, *PP2], marks=pytest.mark.slow),
    ],
)
def test_the_distributed_optimizer_may_be_toggled_with_the_layout(
    train: Train, tmp_path: Path, before: list[str], after: list[str]
) -> None:
    words = ["--train.steps", "4", "--checkpoint.save", str(tmp_path / "run")]
    whole = train(2, "--train.steps", "4")
    train(2, *words, *before, "--checkpoint.interval", "2")
    shutil.rmtree(tmp_path / "run/step_000004")
    resumed = train(2, *words, *after)
    assert [row["step"] for row in resumed] == [3, 4]
    for row, wanted in zip(resumed, whole[2:], strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)


def tensors(step: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole, as PyTorch's own converter joins them."""
    joined = step.with_suffix(".pt")
    dcp_to_torch_save(step, joined)
    found = torch.load(joined, weights_only=True)
    return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([*BF16, *SPREAD], [*FP32, *TP2]),
        ([*FP32, *TP2], [*BF16, *SPREAD]),
        pytest.param([*BF16, *CP2], [*FP32, *SPREAD], marks=pytest.mark.slow),
        pytest.param([*FP32, *SPREAD], [*BF16, *TP2], marks=pytest.mark.slow),
    ],
)
def test_the_precision_may_change_and_main_weights_stay_the_same_bits(
    train: Train, tmp_path: Path, before: list[str], after: list[str]
) -> None:
    words = ["--checkpoint.save", str(tmp_path / "run")]
    train(2, *words, *before, "--train.steps", "2")
    (resumed,) = train(2, *words, *after, "--train.steps", "3", "--optimizer.learning_rate", "0")
    first, then = (tensors(tmp_path / f"run/step_00000{step}") for step in (2, 3))
    kept = [key for key in first if key.endswith("weight") and not key.startswith("optimizer.")]
    assert len(kept) >= 9
    for key in kept:
        main = "optimizer.state.param." + key
        assert torch.equal(first.get(main, first[key]), then.get(main, then[key])), key
        assert torch.equal(then[key], then.get(main, then[key]).to(then[key].dtype)), key
        for moment in ("exp_avg", "exp_avg_sq"):
            assert first[f"optimizer.state.{moment}.{key}"].dtype == torch.float32
    assert resumed["step"] == 3 and resumed["loss"] > 0


@pytest.mark.gloo
def test_a_checkpoint_without_an_optimizer_is_no_run_and_not_damaged(
    begin: Callable[..., Job], workspace: Path, tmp_path: Path
) -> None:
    step = shutil.copytree(workspace / "megatron", tmp_path / "run/step_000001")
    description = json.loads((step / "ultralong.json").read_text())
    train_data = {"samples": 0, "sources": []}
    (step / "ultralong.json").write_text(json.dumps(description | {"data": train_data}))
    job = begin(1, "--checkpoint.save", str(tmp_path / "run"))
    assert job.statuses() == [2], job.log()
    assert f"error: {step}: holds no state of an optimizer to resume from; give it as checkpoint.load" in job.log()
    assert "damaged" not in job.log() and "Traceback" not in job.log()


@pytest.mark.slow
@pytest.mark.gloo
def test_a_padded_vocabulary_resumes_at_another_tensor_parallel_size(
    train: Train, workspace: Path, tmp_path: Path
) -> None:
    hf = shutil.copytree(workspace / "hf", tmp_path / "hf", ignore=shutil.ignore_patterns("model*"))
    build_model(hf, "llama", vocab_size=401, num_hidden_layers=4, max_position_embeddings=64)  # 402 rows by twos
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")
    model = ["--model.hf", str(hf), "--checkpoint.load", str(tmp_path / "megatron"), "--train.steps", "3"]
    whole = train(1, *model)
    for first, then in ((1, 2), (2, 1)):
        saved = tmp_path / f"run{first}"
        words = [*model, "--checkpoint.save", str(saved), "--checkpoint.interval", "2"]
        train(first, *words, "--parallel.tensor", str(first))
        shutil.rmtree(saved / "step_000003")
        (resumed,) = train(then, *words, "--parallel.tensor", str(then))
        assert resumed["loss"] == pytest.approx(whole[2]["loss"], rel=1e-5)
        assert resumed["grad_norm"] == pytest.approx(whole[2]["grad_norm"], rel=1e-5)


@pytest.mark.gloo
def test_a_finished_run_can_be_given_more_steps(train: Train, tmp_path: Path) -> None:
    saved = ["--checkpoint.save", str(tmp_path / "run")]
    train(1, "--train.steps", "1", *saved)
    rows = train(1, "--train.steps", "2", "--optimizer.learning_rate", "5e-4", *saved)
    assert [(row["step"], row["learning_rate"]) for row in rows] == [(2, 5e-4)]


@pytest.mark.gloo
def test_weights_and_batch_may_change_on_resume(train: Train, workspace: Path, tmp_path: Path) -> None:
    """Each source goes on where it was: nothing is read twice or left out."""
    saved = tmp_path / "run"
    words = ["--checkpoint.save", str(saved), "--data.loss_on_first_tokens", "false"]
    words += ["--data.sources.1.index", str(workspace / "packed_chats"), "--data.sources.1.weight"]
    train(1, *words, "1", "--train.steps", "2")
    train(1, *words, "3", "--train.steps", "4", "--train.global_batch_size", "8")

    def position(step: int) -> Position:
        return checkpoints.data_position(saved / f"step_{step:06d}")

    first, second = position(2), position(4)
    assert (first.samples, second.samples) == (8, 8 + 16)
    assert [(source.drawn_before, source.drawn) for source in first.sources] == [(0, 4), (0, 4)]
    assert [(source.drawn_before, source.drawn) for source in second.sources] == [(4, 4 + 4), (4, 4 + 12)]
    assert [source.weight for source in second.sources] == [0.25, 0.75]
    sources = [PackedDataset(workspace / name) for name in ("packed", "packed_chats")]
    before = BlendedDataset(sources, [1, 1], seed=1234)
    after = BlendedDataset(sources, [1, 3], seed=1234, start=first)
    read = [before.locate(k) for k in range(8)] + [after.locate(k) for k in range(8, 24)]
    for source, dataset in enumerate(sources):
        drawn = [i for where, i in read if where == source]
        for epoch in range(0, len(drawn), len(dataset)):
            assert len(set(drawn[epoch : epoch + len(dataset)])) == len(drawn[epoch : epoch + len(dataset)])
