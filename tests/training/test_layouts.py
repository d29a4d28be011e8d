"""Every parallel layout computes the same: losses and gradient norms from one converted checkpoint, in fp32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.blend import BlendedDataset
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import tokenize_corpus
from tests.convert.tiny_models import build_model
from tests.training.conftest import SEQUENCE_LENGTH, Train

LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "full recompute": (1, ["--parallel.recompute", "full"]),
    "CP 2": (2, ["--parallel.context", "2"]),
    "CP 2 by heads, selective recompute": (
        2,
        ["--parallel.context", "2", "--parallel.ulysses", "2", "--parallel.recompute", "selective"],
    ),
    "CP 2 x 2, heads and ring": (4, ["--parallel.context", "4", "--parallel.ulysses", "2"]),
    "CP 2, full recompute": (2, ["--parallel.context", "2", "--parallel.recompute", "full"]),
    "TP 2, sequence parallel": (
        2,
        ["--parallel.tensor", "2", "--parallel.sequence_parallel", "true", "--train.loss_chunk", "12"],
    ),
    "PP 2": (2, ["--parallel.pipeline", "2"]),
    "DP 2, distributed optimizer": (2, ["--parallel.distributed_optimizer", "true"]),
    "PP 2, three layers and one": (2, ["--parallel.pipeline", "2", "--parallel.last_stage_layers", "1"]),
    "DP 2, overlaps in small buckets": (
        2,
        ["--parallel.distributed_optimizer", "true", "--parallel.ddp_bucket_size", "5000"],
    ),
    "DP 2 without overlaps, nothing fused": (
        2,
        [
            *["--parallel.overlap_grad_reduce", "false", "--train.gradient_accumulation_fusion", "false"],
            *["--optimizer.fused", "false", "--train.prefetch", "false"],
        ],
    ),
    "PP 2 x DP 2, distributed optimizer, groups of heads": (
        4,
        [
            *["--parallel.pipeline", "2", "--parallel.distributed_optimizer", "true"],
            *["--parallel.ddp_bucket_size", "5000", "--parallel.recompute", "full", "--parallel.offload", "true"],
            *["--parallel.head_groups", "2", "--parallel.mlp_chunk", "20", "--train.loss_chunk", "12"],
        ],
    ),
    "CP 2 x TP 2": (4, ["--parallel.context", "2", "--parallel.tensor", "2"]),
}
DOCUMENTS = ["--data.document_mask", "true"]


@pytest.fixture(scope="module")
def one_process() -> dict[str, list[dict[str, Any]]]:
    """Rows of the run on one process, by whether documents are masked; filled by the first test that asks."""
    return {}


def check(train: Train, known: dict[str, list[dict[str, Any]]], name: str, extra: list[str]) -> None:
    key = " ".join(extra)
    if key not in known:
        known[key] = train(1, *extra)
    processes, overrides = LAYOUTS[name]
    rows = train(processes, *overrides, *extra)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row, wanted in zip(rows, known[key], strict=True):
        assert row["tokens"] == wanted["tokens"]
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)


@pytest.mark.gloo
@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_one_process(train: Train, one_process: dict[str, list[dict[str, Any]]], name: str) -> None:
    check(train, one_process, name, [])


@pytest.mark.gloo
@pytest.mark.parametrize("name", ["CP 2", "CP 2 x 2, heads and ring", "TP 2, sequence parallel"])
def test_equals_one_process_with_masked_documents(
    train: Train, one_process: dict[str, list[dict[str, Any]]], name: str
) -> None:
    check(train, one_process, name, DOCUMENTS)


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("name", "extra"), [("CP 2 x 2, heads and ring", []), ("CP 2 x TP 2, sequence parallel", DOCUMENTS)], ids=str
)
def test_a_length_that_ranks_do_not_divide_is_padded_and_equals_one_process(
    train: Train, workspace: Path, tmp_path: Path, name: str, extra: list[str]
) -> None:
    """57 tokens, unpadded on one process; as 64 on four context-parallel ranks, as 60 on two by two."""
    options = PackOptions(sequence_length=57, separator=(1,))
    write_packed_index(open_corpus(workspace / "corpus"), tmp_path / "packed", options)
    odd = ["--data.sources.0.index", str(tmp_path / "packed"), "--data.sequence_length", "57", "--train.steps", "2"]
    odd += extra
    processes, overrides = {**LAYOUTS, **CURVES}[name]
    wanted, rows = train(1, *odd), train(processes, *overrides, *odd, "--data.pad_to_divisible", "true")
    for row, expected in zip(rows, wanted, strict=True):
        assert row["tokens"] == expected["tokens"]
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


@pytest.mark.gloo
def test_a_rank_without_labels_changes_nothing(train: Train, workspace: Path) -> None:
    chats = ["--data.sources.0.index", str(workspace / "packed_chats"), "--train.global_batch_size", "1"]
    dataset = PackedDataset(workspace / "packed_chats")
    labels = [dataset.read(0, zigzag.spans(SEQUENCE_LENGTH, rank, 4)).loss_mask.sum() for rank in range(4)]
    assert 0 in labels and sum(labels) > 0
    wanted = train(1, *chats, "--data.document_mask", "true")
    rows = train(4, *chats, "--data.document_mask", "true", "--parallel.context", "4")
    for row, expected in zip(rows, wanted, strict=True):
        assert row["tokens"] == expected["tokens"]
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


@pytest.fixture(scope="module")
def half_silent(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats of which half were cut before the answer began: samples without any label."""
    root = tmp_path_factory.mktemp("silent")
    chats = [
        [{"role": "user", "content": "why? " * (40 if n % 2 else 1)}, {"role": "assistant", "content": f"{n}! " * 12}]
        for n in range(12)
    ]
    (root / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    tokenize_corpus([root / "chats.jsonl"], root / "chats", load_tokenizer(workspace / "hf"), Fields())
    options = PackOptions(sequence_length=SEQUENCE_LENGTH, packing="best_fit", overlong="cut")
    write_packed_index(open_corpus(root / "chats"), root / "packed", options)
    return root / "packed"


@pytest.mark.gloo
@pytest.mark.parametrize(("name", "batch"), [("DP 2, distributed optimizer", 2), ("PP 2", 4)])
def test_a_microbatch_without_labels_changes_nothing(train: Train, half_silent: Path, name: str, batch: int) -> None:
    """Under DP 2 a rank has one microbatch a step, under PP 2 every stage has four."""
    blend = BlendedDataset([PackedDataset(half_silent)], [1.0], 1234)
    labels = [int(blend.read(k).loss_mask.sum()) for k in range(3 * batch)]
    steps = [labels[first : first + batch] for first in range(0, 3 * batch, batch)]
    assert any(0 in step and sum(step) for step in steps), steps
    chats = ["--data.sources.0.index", str(half_silent), "--train.global_batch_size", str(batch)]
    wanted = train(1, *chats)
    processes, overrides = LAYOUTS[name]
    rows = train(processes, *chats, *overrides)
    assert [row["tokens"] for row in rows] == [sum(step) for step in steps]
    for row, expected in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


@pytest.mark.gloo
def test_gradients_may_be_reduced_in_bf16(train: Train) -> None:
    words = ["--train.precision", "bf16", "--train.steps", "1"]
    (exact,) = train(2, *words)
    (rounded,) = train(2, *words, "--train.grad_reduce_in_fp32", "false")
    assert rounded["loss"] == exact["loss"]
    assert rounded["grad_norm"] != exact["grad_norm"]
    assert rounded["grad_norm"] == pytest.approx(exact["grad_norm"], rel=2**-7)


@pytest.mark.gloo
def test_more_tensor_parallel_ranks_than_key_value_heads_equal_one_process(
    train: Train, workspace: Path, tmp_path: Path
) -> None:
    """Two query heads and one key-value head on two ranks, from one converted checkpoint, and exported again."""
    hf = shutil.copytree(workspace / "hf", tmp_path / "hf", ignore=shutil.ignore_patterns("model*"))
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    build_model(hf, "llama", vocab_size=400, num_hidden_layers=2, max_position_embeddings=64, **heads)
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")
    model = ["--model.hf", str(hf), "--checkpoint.load", str(tmp_path / "megatron"), "--checkpoint.save"]
    wanted = train(1, *model, str(tmp_path / "one"))
    rows = train(2, *model, str(tmp_path / "two"), "--parallel.tensor", "2", "--parallel.sequence_parallel", "true")
    for row, expected in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    for run in ("one", "two"):
        convert_megatron_to_hf(load=tmp_path / run / "step_000003", output=tmp_path / f"{run}_hf")
    one, two = (load_file(tmp_path / f"{run}_hf" / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert (two[name] - weight).norm() <= 1e-4 * weight.norm(), name  # Adam makes much of a gradient near 0


CURVES: dict[str, tuple[int, list[str]]] = {
    "CP 2": LAYOUTS["CP 2"],
    "TP 2, sequence parallel": LAYOUTS["TP 2, sequence parallel"],
    "PP 2": LAYOUTS["PP 2"],
    "DP 2, distributed optimizer": LAYOUTS["DP 2, distributed optimizer"],
    "CP 2 x TP 2, sequence parallel": (
        4,
        ["--parallel.context", "2", "--parallel.tensor", "2", "--parallel.sequence_parallel", "true"],
    ),
    "PP 2 x CP 2": (4, ["--parallel.pipeline", "2", "--parallel.context", "2"]),
}


@pytest.mark.slow
@pytest.mark.gloo
def test_fifty_steps_part_only_as_rounding_does(train: Train) -> None:
    """The yardstick is the same run on one process whose microbatches hold two samples: other sums, same numbers.

    Writes build/loss_curves.json; tests/benchmarks/plot_loss_curves.py draws it.
    """
    steps = ["--train.steps", "50"]
    wanted = [row["loss"] for row in train(1, *steps)]
    assert wanted[-1] < 0.9 * wanted[0]
    runs = {"one process, two samples a microbatch": (1, ["--train.micro_batch_size", "2"]), **CURVES}
    curves = {name: [row["loss"] for row in train(n, *steps, *words)] for name, (n, words) in runs.items()}
    apart = {name: [abs(a - b) / b for a, b in zip(curve, wanted, strict=True)] for name, curve in curves.items()}
    Path("build").mkdir(exist_ok=True)
    Path("build/loss_curves.json").write_text(json.dumps({"losses": wanted, "apart": apart}, indent=1))
    rounding = max(apart.pop("one process, two samples a microbatch"))
    assert 0 < rounding < 1e-4
    for name, differences in apart.items():
        assert max(differences) <= 5 * rounding, (name, max(differences), rounding)
