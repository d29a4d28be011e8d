"""Validation: the same figures on every layout and in fp64, nothing of training changed, the best checkpoint kept."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.config.sections import RopeConfig
from megatron_ultralong.convert.formats.torch_dist import Reader
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.data.resampling.holding_out import hold_out
from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.recipes import scaled
from megatron_ultralong.training import checkpoints, needle_prompts, sources
from tests.training.jobs import Job, rows_of
from tests.training.test_layouts import CURVES, LAYOUTS
from tests.training.validated import (
    BOUNDS,
    LENGTH,
    NEEDLES,
    SAMPLES,
    data_words,
    killed_in_a_validation,
    measure_both,
    stopped_in_a_validation,
    untimed,
    words,
)

Begin = Callable[..., Job]
MASKED = ["--data.document_mask", "true"]


@pytest.fixture(scope="module")
def held_out(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and held_out/, packed from documents of which none is in both."""
    root, corpus = tmp_path_factory.mktemp("held_out"), open_corpus(workspace / "corpus")
    options = PackOptions(sequence_length=LENGTH, separator=(1,))
    for name, part in (("train", "rest"), ("held_out", "held-out")):
        write_packed_index(corpus, root / name, options, hold_out(corpus, None, 0.3, part))  # type: ignore[arg-type]
    return root


@pytest.fixture(scope="module")
def whole(workspace: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run on one process, with needles and a checkpoint a step. Not to be changed."""
    return on_one_process(workspace, tmp_path_factory.mktemp("whole"), words(held_out, *NEEDLES))


@pytest.fixture(scope="module")
def whole_masked(workspace: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with masked documents."""
    return on_one_process(workspace, tmp_path_factory.mktemp("masked"), words(held_out, *NEEDLES, *MASKED))


def on_one_process(workspace: Path, folder: Path, chosen: list[str]) -> Path:
    more = ["--checkpoint.save", str(folder / "run"), "--checkpoint.interval", "1"]
    job = Job(folder / "job", 1, ["--config", str(workspace / "run.toml"), *chosen, *more])
    assert job.statuses(300) == [0], job.log()[-4000:]
    return folder / "run"


def check_rows(path: Path, wanted: Path) -> None:
    """Steps and validations are those of the run on one process, to the rounding of fp32 sums in another order."""
    rows, expected = untimed(path), untimed(wanted / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == [0, 1, 2, 2, 3, 3]
    for row, other in zip(rows, expected, strict=True):
        if "validation" in row:
            assert row["labels"] == other["labels"]
            assert row["validation"] == pytest.approx(other["validation"], rel=2e-5)
        else:
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.gloo
@pytest.mark.parametrize(
    "name",
    [
        "CP 2 x TP 2, sequence parallel",
        "PP 2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("TP 2, sequence parallel", "CP 2", "CP 2 x 2, heads and ring", "full recompute")
        ),
    ],
)
def test_every_layout_finds_the_same(begin: Begin, tmp_path: Path, held_out: Path, whole: Path, name: str) -> None:
    processes, overrides = {**LAYOUTS, **CURVES}[name]
    path = tmp_path / "metrics.jsonl"
    job = begin(processes, *words(held_out, *NEEDLES), *overrides, "--log.metrics", str(path))
    assert job.statuses(300) == [0] * processes, job.log()[-4000:]
    check_rows(path, whole)


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.parametrize("name", ["CP 2", "TP 2, sequence parallel", "PP 2"])
def test_every_layout_finds_the_same_with_masked_documents(
    begin: Begin, tmp_path: Path, held_out: Path, whole: Path, whole_masked: Path, name: str
) -> None:
    """A position's context is then its document's, which fills other buckets."""
    processes, overrides = LAYOUTS[name]
    path = tmp_path / "metrics.jsonl"
    job = begin(processes, *words(held_out, *NEEDLES, *MASKED), *overrides, "--log.metrics", str(path))
    assert job.statuses(300) == [0] * processes, job.log()[-4000:]
    check_rows(path, whole_masked)
    labels, unmasked = (untimed(folder / "metrics.jsonl")[0]["labels"] for folder in (whole_masked, whole))
    assert labels["held_out/64-160"] < unmasked["held_out/64-160"] and labels["held_out"] < unmasked["held_out"]


@pytest.mark.gloo
def test_the_figures_are_those_of_transformers_in_fp64(
    tmp_path: Path, workspace: Path, held_out: Path, whole: Path
) -> None:
    """Whole logits, a sample at a time; the run's are fp32, whose rounding through four layers the tolerance is."""
    from transformers import LlamaForCausalLM

    row = untimed(whole / "metrics.jsonl")[0]
    shutil.copytree(workspace / "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    rope = scaled(config_json.read(config), RopeConfig(kind="linear", target_length=256), LENGTH)
    config = {key: value for key, value in config.items() if key not in config_json.ENTRIES} | config_json.write(rope)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    model = LlamaForCausalLM.from_pretrained(tmp_path / "hf").double()
    data = PackedDataset(held_out / "held_out")
    sums = dict.fromkeys(range(3), (0.0, 0))
    for number in range(SAMPLES):
        sample = data[number * len(data) // SAMPLES]
        with torch.no_grad():
            logits = model(torch.tensor(sample.tokens[None])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(sample.labels), reduction="none").numpy()
        for bucket, (low, high) in enumerate(((0, BOUNDS[0]), BOUNDS, (BOUNDS[1], LENGTH))):
            counts = sample.loss_mask[low:high] > 0
            nats, labels = sums[bucket]
            sums[bucket] = nats + float(losses[low:high][counts].sum()), labels + int(counts.sum())
    names = ["held_out/0-16", "held_out/16-64", "held_out/64-160"]
    for name, (nats, labels) in zip(names, sums.values(), strict=True):
        assert row["labels"][name] == labels
        assert row["validation"][f"loss/{name}"] == pytest.approx(nats / labels, rel=1e-5)
        assert row["validation"][f"perplexity/{name}"] == pytest.approx(math.exp(nats / labels), rel=1e-4)
    total = [sum(values) for values in zip(*sums.values(), strict=True)]
    assert row["validation"]["loss/held_out"] == pytest.approx(total[0] / total[1], rel=1e-5)
    assert row["labels"]["held_out"] == total[1]
    check_needles(row, workspace, data, model)


def check_needles(row: dict[str, Any], workspace: Path, data: PackedDataset, model: torch.nn.Module) -> None:
    """The prompts hold what they should, and transformers finds the same needles."""
    config = load_config(workspace / "run.toml", [*NEEDLES, "--validation.sources.0.index", "any"])
    tokenizer = ChatTokenizer(workspace / "hf", chat=False)
    prompts = needle_prompts._made(config.validation, tokenizer)
    for length in (144, 160):
        right, nats, labels = [], 0.0, 0
        for number, prompt in enumerate(each for each in prompts if each.length == length):
            ids = prompt.ids(data[number % len(data)].tokens[: prompt.room])
            text = tokenizer.decode(ids.tolist())
            (name, digits) = re.findall(r"The (\w+) key is (\d{5})", text)[-1]
            assert len(ids) == length and text.endswith(digits)
            assert text.count(f"\nThe {name} key is {digits}.\n") == 1 and f"What is the {name} key?" in text
            assert tokenizer.decode(list(prompt.answer)).strip() == digits
            with torch.no_grad():
                logits = model(torch.tensor(ids[None, :-1])).logits[0, -len(prompt.answer) :]
            answer = torch.tensor(prompt.answer)
            right.append(bool((logits.argmax(-1) == answer).all()))
            nats += float(torch.nn.functional.cross_entropy(logits, answer, reduction="sum"))
            labels += len(answer)
        assert row["validation"][f"needles/{length}"] == pytest.approx(np.mean(right))
        assert row["validation"][f"needle_loss/{length}"] == pytest.approx(nats / labels, rel=1e-5)
        assert row["labels"][f"needles/{length}"] == labels


def test_documents_that_are_trained_on_are_counted(workspace: Path, held_out: Path) -> None:
    apart, own = PackedDataset(held_out / "held_out"), PackedDataset(held_out / "train")
    everything = PackedDataset(workspace / "packed")
    assert list(sources.learnt_too([apart], [own])) == []
    (said,) = sources.learnt_too([apart], [own, everything])
    count = len(set(apart.index.document_ids))
    assert said.startswith(
        f"{held_out / 'held_out'}: {count} of its {count} documents are in {workspace / 'packed'} too"
    )


def weights(folder: Path) -> dict[str, bytes]:
    """Every tensor of a checkpoint, optimizer's too, as bytes."""
    reader = Reader(folder)
    return {key: reader.rows(key, 0, shape[0]).numpy().tobytes() for key, shape in reader.shapes().items() if shape}


@pytest.mark.gloo
@pytest.mark.parametrize(
    "more",
    [
        ["--parallel.distributed_optimizer", "true", "--parallel.ddp_bucket_size", "5000"],
        pytest.param(["--parallel.context", "2", *MASKED], marks=pytest.mark.slow),
        pytest.param(["--parallel.pipeline", "2", "--train.prefetch", "false"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_training_is_the_same_bytes_with_and_without(
    begin: Begin, tmp_path: Path, held_out: Path, whole: Path, more: list[str]
) -> None:
    """Small buckets are gathered late: a validation that saw the weights of before the step would find other losses."""
    found = []
    for name, chosen in (("with", words(held_out, *NEEDLES)), ("without", data_words(held_out))):
        save = tmp_path / name
        job = begin(2, *chosen, *more, "--checkpoint.save", str(save))
        assert job.statuses(300) == [0, 0], job.log()[-4000:]
        rows = untimed(save / "metrics.jsonl")
        assert [row["step"] for row in rows if "validation" in row] == ([0, 2, 3] if name == "with" else [])
        description = json.loads((save / "step_000003" / "ultralong.json").read_text())
        stepped = [row for row in rows if "validation" not in row]
        found.append((stepped, weights(save / "step_000003"), description["data"]))
    assert len(found[0][1]) > 20 and found[0] == found[1]
    if MASKED[0] not in more:
        check_rows(tmp_path / "with" / "metrics.jsonl", whole)
    check_tensorboard(tmp_path / "with")


def check_tensorboard(save: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(save / "tensorboard"))
    events.Reload()
    rows = [row for row in rows_of(save / "metrics.jsonl") if "validation" in row]
    for name in ("loss/held_out", "perplexity/held_out/16-64", "needles/144"):
        shown = [(event.step, event.value) for event in events.Scalars(f"validation/{name}")]
        assert shown == [(row["step"], pytest.approx(row["validation"][name])) for row in rows]


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("spoil", "status"),
    [(killed_in_a_validation, -9), pytest.param(stopped_in_a_validation, 85, marks=pytest.mark.slow)],
)
def test_a_validation_that_was_cut_off_is_made_up_for(
    begin: Begin, tmp_path: Path, held_out: Path, whole: Path, spoil: Callable[[int], None], status: int
) -> None:
    """And only that: every row stands once, with the numbers of a run that nothing cut off."""
    chosen = [*words(held_out, *NEEDLES), "--checkpoint.interval", "1", "--train.requeue_code", "85"]
    save = tmp_path / "cut"
    job = begin(1, *chosen, "--checkpoint.save", str(save), change=spoil)
    assert job.statuses(300) == [status], job.log()
    assert [row["step"] for row in untimed(save / "metrics.jsonl")] == [0, 1, 2]
    assert next(folder.name for folder in checkpoints.step_folders(save)) == f"step_{1 if status < 0 else 2:06d}"
    job = begin(1, *chosen, "--checkpoint.save", str(save))
    assert job.statuses(300) == [0], job.log()
    assert untimed(save / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    assert weights(save / "step_000003") == weights(whole / "step_000003")


@pytest.mark.gloo
def test_the_best_checkpoint_stays_and_a_run_that_gets_no_better_ends(
    begin: Begin, tmp_path: Path, held_out: Path
) -> None:
    """Two good steps, then a learning rate that spoils everything."""
    save = tmp_path / "run"
    chosen = [*words(held_out), "--validation.interval", "1", "--checkpoint.save", str(save)]
    chosen += ["--validation.keep_best", "loss/held_out/64-160", "--validation.patience", "2"]
    chosen += ["--checkpoint.keep_last", "1", "--checkpoint.async_save", "true"]
    assert begin(1, *chosen, "--train.steps", "2").statuses(300) == [0]
    assert [folder.name for folder in checkpoints.step_folders(save)] == ["step_000002"]
    assert (save / "best").readlink() == Path("step_000002")
    spoilt = [*chosen, "--train.steps", "9", "--optimizer.learning_rate", "30", "--checkpoint.interval", "1"]
    job = begin(1, *spoilt)
    assert job.statuses(300) == [0], job.log()
    assert "validation after step 3: loss/held_out is " in job.log() and " above its lowest so far, " in job.log()
    ended = "ended after step 4 of 9: validation.patience 2: loss/held_out/64-160 was best after step 2, "
    assert ended in job.log()
    assert [folder.name for folder in checkpoints.step_folders(save)] == ["step_000004", "step_000002"]
    assert checkpoints.damage(save / "best") == ""
    job = begin(1, *spoilt)
    assert job.statuses(300) == [0] and ended in job.log()
    assert [row["step"] for row in untimed(save / "metrics.jsonl")] == [0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.gloo
@pytest.mark.parametrize("recompute", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_a_validation_takes_less_memory_than_a_step(
    workspace: Path, tmp_path: Path, held_out: Path, recompute: str
) -> None:
    """Full recomputation keeps least of a step: layer inputs. Both have one layer's forward and a chunk of logits."""
    chosen = ["--config", str(workspace / "run.toml"), *words(held_out, *NEEDLES), "--parallel.recompute", recompute]
    job = Job(tmp_path / "job", 1, chosen, main=measure_both)
    assert job.statuses(300) == [0], job.log()
    found = {name: int(number) for name, number in re.findall(r"^(step|validation) (\d+)$", job.log(), re.MULTILINE)}
    assert 0 < found["validation"] < found["step"]


@pytest.mark.gloo
@pytest.mark.slow
def test_a_dry_run_finds_what_a_validation_could_not_do(begin: Begin, held_out: Path) -> None:
    job = begin(1, *words(held_out, *NEEDLES), "--dry-run")
    assert job.statuses(300) == [0] and " without their validations" in job.log(), job.log()
    assert "validation after" not in job.log(), job.log()
    job = begin(1, *words(held_out, "--validation.needles", "64"), "--dry-run")
    assert job.statuses(300) == [2] and "validation.needles: length 64 is too short" in job.log(), job.log()
