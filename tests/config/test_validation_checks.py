"""What [validation] measures by name, and every way in which it can mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.config.validation_checks import (
    bucket_bounds,
    higher_is_better,
    metric_names,
    source_names,
    validation_problems,
)
from megatron_ultralong.errors import UserError

HF = {"max_position_embeddings": 131072}


@pytest.fixture
def read(tmp_path: Path):
    """read(flags) -> the configuration of a run of 1,048,576 tokens with these flags."""
    (tmp_path / "run.toml").write_text(
        '[model]\nhf = "m"\n[data]\nsequence_length = 1_048_576\nsources = [{ index = "a" }]\n'
        '[train]\nsteps = 3\nglobal_batch_size = 4\n[checkpoint]\nsave = "s"\n'
    )
    return lambda flags: load_config(tmp_path / "run.toml", flags.split())


HELD_OUT = "--validation.sources.0.index data/held_out --validation.interval 10 "


@pytest.mark.parametrize(
    ("flags", "length", "bounds"),
    [
        ("", 131072, (4096, 131072, 1048576)),
        ("", 4096, (4096, 1048576)),
        ("", 256, (256, 1048576)),
        ("--data.sequence_length 8192", 131072, (4096, 8192)),
        ("--data.sequence_length 2048", 131072, (2048,)),
        ("--validation.bounds 16,32768", 131072, (16, 32768, 1048576)),
    ],
)
def test_buckets_end_at_4096_and_at_the_context_before(read, flags, length, bounds) -> None:
    assert bucket_bounds(read(HELD_OUT + flags), {"max_position_embeddings": length}) == bounds


def test_sources_are_called_by_as_much_of_their_folders_as_tells_them_apart(read) -> None:
    flags = " ".join(f"--validation.sources.{n}.index {path}" for n, path in enumerate(("x/a", "y/a", "y/b")))
    assert source_names(read(flags)) == ["x.a", "y.a", "y.b"]
    assert source_names(read(HELD_OUT)) == ["held_out"]


def test_every_metric_has_a_name(read) -> None:
    names = metric_names(read(HELD_OUT + "--validation.needles 4096"), HF)
    buckets = ("", "/0-4096", "/4096-131072", "/131072-1048576")
    assert names == [
        *[f"{kind}/held_out{bucket}" for kind in ("loss", "perplexity") for bucket in buckets],
        "needles/4096",
        "needle_loss/4096",
    ]
    assert [name for name in names if higher_is_better(name)] == ["needles/4096"]
    assert metric_names(read(HELD_OUT + "--data.sequence_length 64"), HF) == ["loss/held_out", "perplexity/held_out"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--validation.interval 5", "validation.interval is given, but validation.sources is not; give the held-out"),
        (HELD_OUT + "--validation.samples -1", "validation.samples is -1; give 0 or more."),
        (HELD_OUT + "--validation.needle_keys 0", "validation.needle_keys is 0; give 1 or more."),
        (HELD_OUT + "--validation.sources.0.weight 2", "validation.sources.0.weight is 2.0, but sources are reported"),
        (HELD_OUT + "--validation.sources.1.index data/../data/held_out", "data/held_out 2 times; list it once."),
        (HELD_OUT + "--validation.bounds 64,32", "validation.bounds is [64, 32]; give tokens of context above 0, each"),
        (HELD_OUT + "--validation.bounds 64,2000000", "validation.bounds is [64, 2000000], but the last bucket ends"),
        (HELD_OUT + "--validation.needles 2000000", "validation.needles has 2000000; give lengths of at most data."),
        (HELD_OUT + "--validation.needles 64,64", "validation.needles is [64, 64]; give each length once."),
        (HELD_OUT + "--validation.patience 2", "validation.patience is 2, but validation.keep_best does not say which"),
        (
            HELD_OUT + "--validation.keep_best loss/held_out/0-4095",
            'validation.keep_best is "loss/held_out/0-4095", which is not measured; the nearest is '
            "loss/held_out/0-4096.",
        ),
        (HELD_OUT + "--validation.keep_best x", 'is "x", which is not measured; known: loss/held_out, loss/held_out/0'),
        (
            HELD_OUT + "--validation.keep_best loss/held_out --checkpoint.save none",
            "validation.keep_best is given, but checkpoint.save is not; give a folder for the checkpoints.",
        ),
        (
            HELD_OUT + "--validation.keep_best loss/held_out --validation.interval 0",
            "validation.keep_best is given with validation.interval 0, which validates the last step alone; give",
        ),
    ],
)
def test_what_means_nothing_is_one_sentence(read, flags: str, said: str) -> None:
    (problem,) = validation_problems(read(flags), HF)
    assert said in problem and problem.endswith(".")


def test_lists_of_numbers_in_the_file_and_on_the_command_line(read, tmp_path: Path) -> None:
    config: RunConfig = read(HELD_OUT + "--validation.needles 4096,131072")
    assert config.validation.needles == (4096, 131072) and config.validation.bounds == ()
    more = '[validation]\nsources = [{ index = "h" }]\nneedles = []\nbounds = [1, "two"]\n'
    (tmp_path / "run.toml").write_text((tmp_path / "run.toml").read_text() + more)
    with pytest.raises(UserError, match=r"line 14: validation\.bounds\.1 is \"two\"; give a whole number\."):
        read("")
    with pytest.raises(UserError, match=r"--validation\.needles\.1 is \"many\"; give a whole number\."):
        read("--validation.bounds 7 --validation.needles 4096,many")
