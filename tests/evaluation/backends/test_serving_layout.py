"""Layouts that cannot be, each in a sentence, all at once; models and texts that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Prompt
from megatron_ultralong.evaluation.backends.megatron.model_source import open_source
from megatron_ultralong.evaluation.backends.megatron.serving_layout import check_layout
from tests.convert.tiny_models import Build
from tests.evaluation.backends.model_ranks import backend

MODEL = {"num_attention_heads": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "fields, world, said",
    [
        ({"pipeline": 2}, 1, "parallel.pipeline is 2, but evaluation has no pipeline"),
        ({"attention": "te"}, 1, 'parallel.attention is "te"'),
        ({"tensor": 2, "sequence_parallel": True}, 2, "parallel.sequence_parallel is true"),
        ({"tensor": 2, "context": 2}, 8, "8 processes are not parallel.tensor 2 x parallel.context 2 = 4"),
        ({"tensor": 3}, 3, "parallel.tensor is 3, which does not divide the model's 8 attention heads"),
        ({"context": 4, "ulysses": 3}, 4, "parallel.ulysses is 3, which does not divide parallel.context 4"),
        ({"tensor": 4, "context": 4, "ulysses": 4}, 16, "parallel.ulysses is 4, which does not divide a rank's 2"),
        ({"context": 0}, 1, "parallel.context is 0; give 1 or more."),
    ],
)
def test_layouts_that_cannot_be(fields: dict[str, Any], world: int, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        check_layout(ParallelConfig(**fields), MODEL, world, 4096)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(UserError, match="has 2 mistakes"):
        check_layout(ParallelConfig(pipeline=2, context=2), MODEL, 1, 4096)
    with pytest.raises(UserError, match="prefill_chunk is 0"):
        check_layout(ParallelConfig(), MODEL, 1, 0)


def test_layouts_that_can_be() -> None:
    check_layout(ParallelConfig(tensor=2, context=4, ulysses=4), MODEL, 8, 1)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither ultralong\.json .* nor config\.json"):
        open_source(tmp_path)


def test_a_window_narrower_than_the_context(build: Build) -> None:
    with pytest.raises(UserError, match=r"sliding_window 32 .* is less than the context of 64 tokens"):
        open_source(build("mistral", sliding_window=32))
    with groups.single_process(ParallelConfig(device="cpu")):
        model = backend(build("mistral", sliding_window=80), (1, 1, 1), 64, past_context=True)
        assert len(list(model.generate([Prompt("", [5] * 70, 2)]))) == 1
        with pytest.raises(UserError, match=r"sliding_window 80 .* is less than the context of 81 tokens"):
            model.generate([Prompt("", [5] * 79, 2)])


def test_texts_that_are_refused(build: Build) -> None:
    with groups.single_process(ParallelConfig(device="cpu")):
        model = backend(build("llama"), (1, 1, 1), 64)
        for ids, budget, said in (
            ([5] * 60, 5, "prompt 1: its 60 tokens with 5 for the answer are more than the model's context of 64"),
            ([], 5, "prompt 1: it has no tokens"),
            ([5, 101], 5, "prompt 1: it has an id outside of the model's vocabulary of 101"),
        ):
            with pytest.raises(UserError, match=said):
                model.generate([Prompt("", [5], 1), Prompt("", ids, budget)])
        with pytest.raises(UserError, match="start is 0"):
            model.losses(np.array([1, 2, 3]), start=0)
        with pytest.raises(UserError, match="no memory on rank 0 for keys and values of 1,000,000,000,000 tokens"):
            model.model.make_room(10**12)
        assert list(model.generate([])) == []
        assert len(model.losses([1])) == 0
