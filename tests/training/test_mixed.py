"""Whole samples beside short isolated documents in one run: each source as if alone, under any layout, resumed."""

from __future__ import annotations

import dataclasses
import functools
import signal
import statistics
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.context_parallel import document_zigzag, zigzag
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.blend import BlendedDataset
from megatron_ultralong.data.reading.dataset import PackedDataset, Sample
from megatron_ultralong.training import batches, dry_run, sources
from tests.training.conftest import SEQUENCE_LENGTH, Train
from tests.training.jobs import Job, rows_of

Begin = Callable[..., Job]
SHORT = ["--data.sources.1.document_mask", "true"]
BY_STEPS = ["--data.blend", "iterations", "--data.sources.0.weight", "2"]


@pytest.fixture(scope="module")
def short(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace's documents in another order."""
    folder = tmp_path_factory.mktemp("mixed") / "short"
    options = PackOptions(sequence_length=SEQUENCE_LENGTH, separator=(1,), shuffle_seed=7)
    write_packed_index(open_corpus(workspace / "corpus"), folder, options)
    return folder


def told(row: dict[str, Any]) -> dict[str, Any]:
    """What a step's row says beside times."""
    timed = ("seconds", "tokens_per_second", "tokens_per_second_per_rank", "tflops_per_rank", "memory_gib")
    return {name: value for name, value in row.items() if name not in timed}


def feed(samples: Sequence[int], rank: int) -> None:
    """Have a rank read these samples of its first source, in this order."""
    del rank
    BlendedDataset.locate = lambda self, k: (0, samples[k])  # type: ignore[method-assign]


@pytest.mark.gloo
def test_each_source_is_as_if_alone(begin: Begin, workspace: Path, short: Path, tmp_path: Path) -> None:
    """At a learning rate of nothing: the losses of a run of that source alone, fed with the same samples by hand."""
    still = ["--optimizer.learning_rate", "0", "--data.loss_on_separators", "false"]
    mixed = [*still, "--data.sources.1.index", str(short), *SHORT, "--data.sources.1.loss_on_separators", "true"]
    both = [PackedDataset(workspace / "packed"), PackedDataset(short)]
    blend = BlendedDataset(both, [1, 1], 1234)
    read = [blend.locate(k) for k in range(12)]
    runs = {
        "mixed": begin(1, *mixed, "--log.metrics", str(tmp_path / "mixed.jsonl")),
        "packed": begin(
            1,
            *[*still, "--train.global_batch_size", "2", "--log.metrics", str(tmp_path / "packed.jsonl")],
            change=functools.partial(feed, [i for source, i in read if source == 0]),
        ),
        "short": begin(
            1,
            *["--optimizer.learning_rate", "0", "--data.sources.0.index", str(short), "--data.document_mask", "true"],
            *["--train.global_batch_size", "2", "--log.metrics", str(tmp_path / "short.jsonl")],
            change=functools.partial(feed, [i for source, i in read if source == 1]),
        ),
    }
    for name, job in runs.items():
        assert job.statuses(300) == [0], (name, job.log())
    rows = {name: rows_of(tmp_path / f"{name}.jsonl") for name in runs}
    assert [source for source, _ in read].count(1) == 6
    for mixture, long, isolated in zip(rows["mixed"], rows["packed"], rows["short"], strict=True):
        assert mixture["loss_by_source"] == {"packed": long["loss"], "short": isolated["loss"]}
        assert mixture["tokens_by_source"] == {"packed": long["tokens"], "short": isolated["tokens"]}
        losses = long["loss"] * long["tokens"] + isolated["loss"] * isolated["tokens"]
        assert mixture["loss"] == pytest.approx(losses / mixture["tokens"], rel=1e-12)
        flops = [row["tflops_per_rank"] * row["seconds"] for row in (mixture, long, isolated)]
        assert flops[0] == pytest.approx(flops[1] + flops[2], rel=1e-12)
        assert "loss_by_source" not in long
    assert [row["samples_by_source"]["short"] for row in rows["mixed"]] == [2, 4, 6]
    labels = {name: sum(row["tokens"] for row in rows[name]) for name in ("packed", "short")}
    assert labels["short"] < 6 * SEQUENCE_LENGTH  # the first token of a document does not count there


@pytest.fixture(scope="module")
def one_process() -> dict[str, list[dict[str, Any]]]:
    """Rows of the run on one process, by its words; filled by the first test that asks."""
    return {}


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("processes", "layout", "extra"),
    [
        (2, ["--parallel.context", "2"], []),
        (2, ["--parallel.tensor", "2", "--parallel.sequence_parallel", "true"], []),
        (2, ["--parallel.distributed_optimizer", "true"], []),
        pytest.param(2, ["--parallel.pipeline", "2"], BY_STEPS, marks=pytest.mark.slow),
        pytest.param(4, ["--parallel.context", "4", "--parallel.ulysses", "2"], BY_STEPS, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_equals_one_process(
    train: Train,
    one_process: dict[str, list[dict[str, Any]]],
    short: Path,
    processes: int,
    layout: list[str],
    extra: list[str],
) -> None:
    words = ["--data.sources.1.index", str(short), *SHORT, *extra]
    wanted = one_process.setdefault(" ".join(extra), []) or train(1, *words)
    one_process[" ".join(extra)] = wanted
    for row, expected in zip(train(processes, *words, *layout), wanted, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
        assert row["loss_by_source"] == pytest.approx(expected["loss_by_source"], rel=1e-5)
        for name in ("tokens", "tokens_by_source", "samples_by_source"):
            assert row[name] == expected[name]
        assert len(row["loss_by_source"]) == (1 if extra else 2)


@pytest.mark.gloo
def test_killed_and_resumed_a_mixed_run_repeats_itself(begin: Begin, short: Path, tmp_path: Path) -> None:
    """Steps of one source each, in their shares at every prefix; then with other shares, from where each source was."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--data.sources.1.index", str(short), *SHORT, *BY_STEPS, "--train.steps", "12"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    job = begin(1, *words, "--checkpoint.save", str(whole))
    words += ["--checkpoint.interval", "2"]
    other = begin(1, *words, "--checkpoint.save", str(killed))
    other.until(lambda: len(rows_of(killed / "metrics.jsonl")) >= 5)
    other.signal(0, signal.SIGKILL)
    other.statuses()
    assert job.statuses() == [0] and 5 <= len(rows_of(killed / "metrics.jsonl")) < 12
    again = begin(1, *words, "--checkpoint.save", str(killed))
    assert again.statuses() == [0], again.log()
    assert "short: " in again.log() and "; documents isolated; 33.3 % of the iterations" in again.log()
    rows = rows_of(whole / "metrics.jsonl")
    assert list(map(told, rows_of(killed / "metrics.jsonl"))) == list(map(told, rows))
    steps = [list(row["loss_by_source"]) for row in rows]
    assert all(len(step) == 1 for step in steps)
    for n in range(1, 13):
        drawn = 4 * steps[:n].count(["short"])
        assert abs(drawn - 4 * n / 3) < 4
        assert rows[n - 1]["samples_by_source"] == {"packed": 4 * n - drawn, "short": drawn}
    events = EventAccumulator(str(killed / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("loss_by_source/short")}
    assert found == pytest.approx({n + 1: row["loss"] for n, row in enumerate(rows) if steps[n] == ["short"]})
    more = [*words, "--train.steps", "15", "--data.sources.0.weight", "0.5", "--train.global_batch_size", "2"]
    last = begin(1, *more, "--checkpoint.save", str(killed))
    assert last.statuses() == [0], last.log()
    assert rows_of(killed / "metrics.jsonl")[-1]["samples_by_source"] == {"packed": 34, "short": 20}


def test_by_tokens_padding_is_made_up_for_in_samples(workspace: Path) -> None:
    """Bit for bit the blend by samples where nothing is padded."""
    config = load_config(workspace / "run.toml", ["--data.blend", "tokens"])
    long, chats = both = PackedDataset(workspace / "packed"), PackedDataset(workspace / "packed_chats")
    data = config.data
    source = dataclasses.replace(data.sources[0], index=workspace / "packed_chats", weight=3.0)
    two = dataclasses.replace(config, data=dataclasses.replace(data, sources=(data.sources[0], source)))
    blend = sources.blend(two, [long, chats], None)
    ends = [[min(int(one.layout(i).starts[-1]), SEQUENCE_LENGTH + 1) for i in range(len(one))] for one in both]
    tokens = [weight * statistics.mean(end) for weight, end in zip(blend.weights, ends, strict=True)]
    assert ends[1] != ends[0] and tokens[1] / sum(tokens) == pytest.approx(0.75)
    assert sources.blend(config, [long], None).weights == [1.0]
    by_samples = dataclasses.replace(two, data=dataclasses.replace(two.data, blend="samples"))
    assert sources.blend(by_samples, [long, chats], None).weights == [0.25, 0.75]


@pytest.fixture
def dry(workspace: Path, short: Path) -> Callable[[int, int], dict[int, float]]:
    """dry(step, steps): what a dry run takes, of a run of so many steps, so many of them done."""
    config = load_config(workspace / "run.toml", ["--data.sources.1.index", str(short), *BY_STEPS])
    both = [PackedDataset(workspace / "packed"), PackedDataset(short)]

    def dry(step: int, steps: int) -> dict[int, float]:
        train = dataclasses.replace(config.train, steps=steps)
        run = types.SimpleNamespace(config=dataclasses.replace(config, train=train), step=step)
        run.data, run.samples_before = sources.blend(config, both, None), lambda n: 4 * n
        return dry_run._steps(run)  # type: ignore[arg-type]

    return dry


def test_a_dry_run_takes_a_step_of_each_source(dry: Callable[[int, int], dict[int, float]]) -> None:
    """The first of each that is still to come, which stands for its share; a source that never comes for none."""
    assert dry(0, 9) == pytest.approx({0: 2 / 3, 1: 1 / 3})
    assert dry(2, 9) == pytest.approx({2: 2 / 3, 4: 1 / 3})
    assert dry(2, 4) == {2: 1.0}


def test_transformer_engine_cuts_the_documents_of_masked_sources_alone(workspace: Path, short: Path) -> None:
    """And a sample of another source whole, which leaves its ranks other positions."""
    words = ["--parallel.attention", "te", "--parallel.context", "2", "--data.sources.1.index", str(short), *SHORT]
    config = load_config(workspace / "run.toml", words)
    bounds = np.array([0, 16, 24, 64], dtype=np.int32)
    nothing = np.zeros(0, dtype=np.int64)
    read = [Sample(nothing, nothing, nothing.astype(np.float32), nothing, bounds, source) for source in (0, 1)]
    data: Any = types.SimpleNamespace(read=lambda k, spans: read[k])
    assert batches.held_spans(config, data, 0, 1, 2) == zigzag.spans(SEQUENCE_LENGTH, 1, 2)
    assert batches.held_spans(config, data, 1, 1, 2) == document_zigzag.spans(bounds.tolist(), 1, 2, 1)
    torch = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, attention="torch"))
    assert batches.held_spans(torch, data, 1, 1, 2) == zigzag.spans(SEQUENCE_LENGTH, 1, 2)
