"""What a rehearsal says of layouts of large clusters, and of faults that only a cluster would show."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.config.stages import layers_of_stages
from megatron_ultralong.context_parallel import ring_exchange
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json
from megatron_ultralong.model import loss
from megatron_ultralong.planning.memory import predict
from megatron_ultralong.rehearsal.differing import differing_ranks, rehearse_job
from megatron_ultralong.rehearsal.limits import check_fits, device_memory
from megatron_ultralong.rehearsal.record import cost
from megatron_ultralong.rehearsal.rehearse import Rehearsal, rehearse
from megatron_ultralong.rehearsal.shallow import LeftOut, shallow
from tests.examples.test_examples import MODELS, ROOT

LLAMA = {**MODELS["models/Llama-3.1-8B-Instruct"], "num_hidden_layers": 2}
WORLD = 256


def config_of(options: str = "") -> RunConfig:
    return load_config(ROOT / "examples/llama3.1_8b_4m/extend.toml", options.split())


def rehearsed(options: str = "", rank: int = 0, model: dict[str, Any] = LLAMA, **rest: Any) -> Rehearsal:
    (found,) = rehearse_job(config_of(options), model, WORLD, [rank], **rest).found
    return found


def test_parts_add_up_to_the_peak() -> None:
    found = rehearsed()
    assert sum(found.peak.parts.values()) == found.peak.bytes == max(total for total, _, _ in found.timeline.bytes)
    weights = sum(4096 * 14336 * 3 + 4096 * 128 * 2 * (32 + 8) for _ in range(2)) // 8 + 2 * 128256 // 8 * 4096
    norms = 5 * 4096
    assert found.standing["weights"] == 2 * (weights + norms)
    assert found.standing["gradients"] == pytest.approx(4 * (weights + norms), rel=0.001)
    assert found.standing["optimizer"] == pytest.approx(12 * (weights + norms) / 32, rel=0.001)
    assert found.peak.parts["standing", "gather buffer of sequence parallelism"] == 2 * 4_194_304 // 16 * 4096
    assert found.peak.place is not None and found.peak.place.module.startswith("decoder.layers.1.mlp")


def test_of_a_mixed_run_the_step_is_of_the_kind_that_document_asks_for() -> None:
    """On a GPU both need the same memory; the pairs of attention tell them apart."""
    length, layout = 65_536, "--parallel.context 2 --train.global_batch_size 16 --parallel.recompute none"
    short = "--data.sources.1.index short --data.sources.1.document_mask true"
    options = f"{short} {layout} --data.sequence_length {length} --rope.target_length {length}"
    whole, isolated = rehearsed(options), rehearsed(options, document=4096)
    a_pair = 4 * 2 * 32 * 128 / 8
    assert whole.attention["forward"] / a_pair == pytest.approx(length * (length + 1) // 2 / 2, rel=1e-3)
    assert isolated.attention["forward"] / a_pair == pytest.approx(length * (4096 + 1) // 2 / 2, rel=1e-3)
    assert whole.memory.total == pytest.approx(isolated.memory.total, rel=0.001)


def test_flops_are_those_of_the_layers_and_the_pairs() -> None:
    """Without recomputation three products a weight, and causal attention's pairs over all ranks of the ring."""
    length, ranks = 1_048_576, (0, 60)
    options = f"--parallel.recompute none --data.sequence_length {length} --rope.target_length {length}"
    for rank in ranks:
        found = rehearsed(options, rank)
        rows, layer = length // 16, (4096 * 14336 * 3 + 4096 * 128 * 2 * (32 + 8)) // 8
        assert found.products["linear layers"] + found.products["heads, rotation"] == 3 * 2 * 2 * layer * rows
        assert found.products["head and loss"] == 3 * 2 * rows * 4096 * 128256 // 8
        pairs = length * (length + 1) // 2 / 16  # zig-zag: every rank has its share
        assert found.attention["forward"] == pytest.approx(4 * 2 * pairs * 32 * 128 / 8, rel=1e-4)
        assert found.attention["backward"] == pytest.approx(10 * 2 * pairs * 32 * 128 / 8, rel=1e-4)


def test_messages_are_named_by_their_groups() -> None:
    found = rehearsed()
    sizes: collections.Counter[tuple[str, str]] = collections.Counter()
    for message, count in found.messages.items():
        sizes[message.kind, found.groups[message.group]] += count * message.bytes
    weights = found.standing["weights"]
    assert sizes["all-gather", "DP x CP"] == pytest.approx(weights, rel=0.001)
    assert sizes["reduce-scatter", "DP x CP"] == pytest.approx(2 * weights, rel=0.001)
    assert {group for _, group in sizes} == {"TP", "CP", "DP x CP", "all", "itself"}


@pytest.mark.parametrize(
    "options",
    [
        "--parallel.pipeline 2 --parallel.context 8 --train.global_batch_size 16",
        "--parallel.context 4 --train.global_batch_size 48 --parallel.recompute full",
    ],
)
def test_one_microbatch_stands_for_those_left_out(options: str) -> None:
    config = config_of(f"{options} --data.sequence_length 131072 --rope.target_length 131072")
    for rank in differing_ranks(config, WORLD):
        few = rehearse(config, LLAMA, WORLD, rank)
        every = rehearse(config, LLAMA, WORLD, rank, every_microbatch=True)
        assert few.microbatches[1] < every.microbatches[1] == every.microbatches[0]
        reports = every.microbatches[1] - few.microbatches[1] if "head and loss" in few.operators else 0
        few.operators["the rest of the step"]["stack"] += reports  # which the step's end takes together
        assert few.operators == every.operators and few.messages == every.messages
        assert few.products == every.products and few.attention == every.attention
        assert 0 <= every.peak.bytes - few.peak.bytes <= 24 * reports


def test_offload_is_the_hosts() -> None:
    kept, away = (
        rehearsed(f"--parallel.recompute full --parallel.offload {offload}", model={**LLAMA, "num_hidden_layers": 4})
        for offload in ("false", "true")
    )
    layer_input = 2 * 4_194_304 // 16 // 8 * 4096
    assert (kept.host, away.host) == (0, 5 * layer_input)  # of four layers and the last norm
    assert kept.peak.bytes - away.peak.bytes >= 2 * layer_input


def test_the_optimizer_may_be_the_hosts() -> None:
    """Here with bf16 gradients, which then are widened nowhere on the device."""
    words = "--train.grad_reduce_in_fp32 false --optimizer.offload_fraction 1"
    there, away = rehearsed(), rehearsed(words)
    planned = predict(config_of(words), LLAMA, WORLD, 0, True)
    assert there.standing["optimizer"] > 0 and "optimizer" not in away.standing
    assert away.host == pytest.approx(planned.host, rel=0.01) and planned.host > there.standing["optimizer"]
    assert away.memory.total == pytest.approx(planned.total, rel=0.05) and planned.optimizer == 0
    assert away.operators["Adam on the host"]["_fused_adamw_"] > 0 == away.operators["optimizer"]["_fused_adamw_"]


def test_ranks_that_differ() -> None:
    config = config_of("--parallel.pipeline 4 --parallel.tensor 2 --parallel.context 8")
    assert differing_ranks(config, 128) == {
        0: "pipeline stage 1 of 4, context 1 of 8",
        14: "pipeline stage 1 of 4, context 8 of 8",
        32: "pipeline stage 2 of 4, context 1 of 8",
        46: "pipeline stage 2 of 4, context 8 of 8",
        96: "pipeline stage 4 of 4, context 1 of 8",
        110: "pipeline stage 4 of 4, context 8 of 8",
    }
    model = {**LLAMA, "num_hidden_layers": 4}
    shorter = "--data.sequence_length 65536 --rope.target_length 65536 --train.global_batch_size 8"
    config = config_of(f"--parallel.pipeline 2 --parallel.context 2 {shorter}")
    job = rehearse_job(config, model, 32)
    assert [(one.coordinates.pipeline, one.coordinates.context) for one in job.found] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert "embedding" in job.found[0].operators and "embedding" not in job.found[2].operators
    assert "head and loss" in job.found[2].operators and "head and loss" not in job.found[0].operators


def test_what_does_not_fit_is_said() -> None:
    job = rehearse_job(config_of("--parallel.context 4 --train.global_batch_size 8"), LLAMA, WORLD, [0])
    check_fits(job, 200_000_000_000)
    with pytest.raises(UserError, match=r"Rank 0 \(context 1 of 4\) needs [\d.]+ GB, and of 40 GB a GPU has 36.0"):
        check_fits(job, device_memory("40"))
    with pytest.raises(UserError, match='--memory is "lots"; give GB'):
        device_memory("lots")


@pytest.mark.parametrize(
    ("options", "rank", "wanted"),
    [
        ("--parallel.tensor 12", 0, "256 processes are no multiple of parallel.tensor 12"),
        ("--data.sequence_length 4194300", 0, "not divisible by 2 x parallel.context"),
        ("", 256, "--rank 256 is none of 256 processes; give one from 0 to 255"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_before_it_is_built(options: str, rank: int, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        rehearsed(options, rank)


class TestFaultsOfAClusterAlone:
    """Each passes on two ranks and breaks on 256; the sentence says which rank, where, and on what."""

    def broken(self, options: str = "") -> str:
        small = "--parallel.tensor 2 --parallel.context 2 --data.sequence_length 8192 --rope.target_length 8192"
        rehearse(config_of(f"{small} {options}"), LLAMA, 4)
        with pytest.raises(UserError) as broken:
            rehearsed(options, 60)
        text = str(broken.value)
        assert text.startswith("Rank 60 of 256 (rank 60) breaks in ") and "\n" not in text
        return text

    def test_an_option_that_breaks_under_tp_8_and_cp_16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tag that takes four bits for the rank in its ring and three for the rank that it came from."""
        start = ring_exchange.Neighbours.start

        def packed(self: Any, *arguments: Any, tag: int, **rest: Any) -> Any:
            if self.rank + self.size >= 1 << 4:
                raise OverflowError(f"tag of rank {self.rank} in a ring of {self.size} takes more than 4 bits")
            return start(self, *arguments, tag=tag, **rest)

        monkeypatch.setattr(ring_exchange.Neighbours, "start", packed)
        text = self.broken()
        assert "in forward of decoder.layers.0.self_attention.core_attention (microbatch 1)" in text
        assert "OverflowError: tag of rank 7 in a ring of 16 takes more than 4 bits" in text

    def test_an_index_over_2_31(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Places of logits as 32-bit numbers."""
        chunk = loss._chunk

        def narrow(rows_ND: torch.Tensor, weight_VD: torch.Tensor, *rest: Any) -> Any:
            torch.tensor(rows_ND.shape[0] * weight_VD.shape[0] - 1, dtype=torch.int32)
            return chunk(rows_ND, weight_VD, *rest)

        monkeypatch.setattr(loss, "_chunk", narrow)
        text = self.broken("--train.loss_chunk 262144")
        assert "in forward of output_layer (microbatch 1)" in text and "int32" in text

    def test_a_shape_that_does_not_divide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A head that is cut into five chunks for every rank of the group."""
        gather = loss._gather

        def whole(rows_ND: torch.Tensor, group: Any) -> torch.Tensor:
            return gather(rows_ND, group).view(group.size() // 2, -1, 3 * group.size() - 2, 1024).view(-1, 4096)

        monkeypatch.setattr(loss, "_gather", whole)
        assert "is invalid for input of size" in self.broken("--train.loss_chunk 1024")


def test_a_rehearsal_leaves_everything_as_it_was() -> None:
    places = (torch, torch.nn.Module, torch.Tensor, torch.nn.functional, torch.distributed)
    before = [{name: id(value) for name, value in vars(place).items()} for place in places]
    rehearsed("--data.sequence_length 131072 --rope.target_length 131072")
    after = [{name: id(value) for name, value in vars(place).items()} for place in places]
    assert [sorted(k for k in a if b.get(k) != a[k]) for a, b in zip(before, after, strict=True)] == [
        [],
        [],
        [],
        [],
        [],
    ]
    assert not torch.distributed.is_initialized()
    assert torch.ones(2).sum().item() == 2.0


def test_every_field_is_of_a_plain_kind() -> None:
    found = rehearsed("--data.sequence_length 131072 --rope.target_length 131072")
    assert isinstance(found.peak.bytes, int) and all(isinstance(n, int) for n in found.products.values())
    assert dataclasses.asdict(found.memory)["weights"] == found.standing["weights"]
    assert Path(ROOT / "docs/rehearsal.md").exists()


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ("--parallel.context 1 --parallel.head_groups 2 --parallel.recompute full --parallel.offload true", 1),
        ("--parallel.context 1 --parallel.mlp_chunk 512 --parallel.recompute full --parallel.offload true", 1),
        ("--parallel.pipeline 2 --parallel.context 1 --parallel.recompute selective --parallel.recompute_layers 2", 2),
    ],
)
def test_what_layers_that_were_left_out_would_hold_is_added(options: str, ranks: int) -> None:
    """One of four layers, or of a stage's two, beside a rehearsal of all."""
    config = load_config(ROOT / "examples/tiny_cpu/extend.toml", options.split())
    model = read_json(ROOT / "examples/tiny_cpu/base/config.json", "the model", "")
    few, every = (rehearse_job(config, model, ranks, layers=n) for n in (1, 4))
    assert few.layers == (4, config.parallel.pipeline) and every.layers == (4, 4)
    for some, whole in zip(few.found, every.found, strict=True):
        assert some.peak.bytes < 0.9 * whole.peak.bytes and every.left_out[whole.rank] == LeftOut()
        assert few.needed(some) == pytest.approx(whole.peak.bytes, rel=0.01)
        assert some.host + few.left_out[some.rank].host == pytest.approx(whole.host, rel=0.01)
    assert f"Of 4 layers {few.layers[1]} were rehearsed" in cost(few) and "--layers" not in cost(every)


def test_of_tiled_layers_two_are_rehearsed_unless_more_are_asked_for() -> None:
    model = {**LLAMA, "num_hidden_layers": 6}
    for tiled in (config_of("--parallel.head_groups 2"), config_of("--parallel.mlp_chunk 64")):
        assert [shallow(tiled, model, n)[1]["num_hidden_layers"] for n in (0, 3, 9)] == [2, 3, 6]
    assert shallow(config_of(), model, 0)[1]["num_hidden_layers"] == 6
    uneven = config_of("--parallel.pipeline 2 --parallel.first_stage_layers 1")
    cut, few = shallow(uneven, model, 2)
    assert (few["num_hidden_layers"], layers_of_stages(cut.parallel, 3)) == (3, [1, 2])
