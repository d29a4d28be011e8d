"""The megatron backend against transformers: greedy ids, verdicts and losses on every layout, chunk and family."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.engine import groups
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Prompt
from tests.convert.tiny_models import Build
from tests.evaluation.backends.model_ranks import RANKS, ModelRanks, ask, backend, bf16_losses, hidden_states

BUDGET = 6
CHUNKS = (3, 5, 64)
LAYOUTS = ((1, 2, 1), (1, 4, 1), (1, 2, 2), (1, 4, 2), (1, 4, 4), (2, 1, 1), (2, 2, 1), (4, 1, 1))
ROPES = {
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
}


def drawn(seed: int, *lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 101, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = drawn(0, 1, 2, 9, 37)


class Reference:
    """transformers on the same folder."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        ).eval()

    def greedy(self, ids: list[int], budget: int = BUDGET) -> tuple[int, ...]:
        """transformers' own greedy loop, which no end token ends."""
        given = torch.tensor([ids])
        self.model.generation_config.eos_token_id = None
        options = {"max_new_tokens": budget, "do_sample": False, "pad_token_id": 0, "use_cache": True}
        out = self.model.generate(given, attention_mask=torch.ones_like(given), **options)
        return tuple(out[0, len(ids) :].tolist())

    @torch.inference_mode()
    def losses(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Of each token but the first, and whether it is the likeliest."""
        logits_SV = self.model(torch.tensor([ids])).logits[0, :-1].double()
        following = torch.tensor(ids[1:])
        losses = torch.nn.functional.cross_entropy(logits_SV, following, reduction="none")
        return losses.numpy(), (logits_SV.argmax(-1) == following).numpy()


@functools.cache
def reference(folder: Path) -> Reference:
    return Reference(folder)


def expected(folder: Path) -> tuple[Any, list[tuple[int, ...]]]:
    """What is asked, and transformers' ids. Texts are prompts with their own answers, one of them spoilt."""
    said = [reference(folder).greedy(ids) for ids in PROMPTS]
    texts = []
    for ids, answer in zip(PROMPTS, said, strict=True):
        whole = ids + list(answer)
        texts.append((whole, ((len(ids), len(ids) + 3), (len(ids) + 3, len(whole)))))
    spoilt = [*texts[-1][0][:-2], (texts[-1][0][-2] + 1) % 101, texts[-1][0][-1]]
    return (PROMPTS, BUDGET, [*texts, (spoilt, texts[-1][1])]), said


def check(found: list[Any], folder: Path) -> None:
    (_, _, texts), said = expected(folder)
    for ids, judged, losses in found:
        assert ids == said
        assert [verdict.greedy for verdict in judged] == [(True, True)] * len(said) + [(True, False)]
        for verdict, (whole, answers) in zip(judged, texts, strict=True):
            by_token, _ = reference(folder).losses(whole)
            wanted = [-by_token[first - 1 : last - 1].sum() for first, last in answers]
            assert verdict.log_likelihood == pytest.approx(wanted, abs=2e-5)
        assert losses.dtype == np.float32
        assert np.abs(losses - reference(folder).losses(texts[-1][0])[0]).max() < 5e-6


def single(load: Path, *arguments: Any) -> list[Any]:
    with groups.single_process(ParallelConfig(device="cpu")):
        return ask(load, (1, 1, 1), *arguments)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "mistral", "qwen2", "qwen3", "phi3"])
def test_one_process(build: Build, family: str) -> None:
    folder = build(family)
    check(single(folder, CHUNKS, expected(folder)[0]), folder)


@pytest.mark.gloo
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts(build: Build, ranks: ModelRanks, layout: tuple[int, int, int]) -> None:
    for family in ("llama", "mistral", "qwen3"):
        folder = build(family)
        chunks = CHUNKS if (family, layout) == ("llama", (1, 4, 2)) else CHUNKS[:1]
        for found in ranks.run(layout, ask, folder, layout, chunks, expected(folder)[0]):
            check(found, folder)


@pytest.mark.gloo
def test_families_whose_weights_are_laid_otherwise(build: Build, ranks: ModelRanks) -> None:
    for family in ("llama-tied", "qwen2", "phi3"):
        folder = build(family)
        for found in ranks.run((2, 2, 1), ask, folder, (2, 2, 1), CHUNKS[:1], expected(folder)[0]):
            check(found, folder)


@pytest.mark.gloo
def test_a_megatron_checkpoint_in_place(build: Build, ranks: ModelRanks, tmp_path: Path) -> None:
    folder = build("llama")
    (tmp_path / "named").symlink_to(folder)
    convert_hf_to_megatron(hf=folder, output=tmp_path / "megatron")
    for layout in ((2, 2, 1),):
        for found in ranks.run(layout, ask, tmp_path / "megatron", layout, (64,), expected(folder)[0]):
            check(found, folder)


@pytest.mark.gloo
@pytest.mark.parametrize("rope", ROPES)
def test_positions_past_the_original_context(build: Build, ranks: ModelRanks, rope: str) -> None:
    scaling = {**ROPES[rope], "rope_theta": 500.0, "original_max_position_embeddings": 64}
    folder = build("llama", rope_parameters=scaling, max_position_embeddings=256)
    prompts = drawn(5, 70, 201)
    said = [reference(folder).greedy(ids) for ids in prompts]
    texts = [(ids + list(answer), ((len(ids), len(ids) + BUDGET),)) for ids, answer in zip(prompts, said, strict=True)]
    for found in ranks.run((1, 4, 1), ask, folder, (1, 4, 1), (7,), (prompts, BUDGET, texts)):
        for ids, judged, losses in found:
            assert ids == said
            assert all(verdict.greedy == (True,) for verdict in judged)
            assert np.abs(losses - reference(folder).losses(texts[-1][0])[0]).max() < 2e-5


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5]}


def test_a_rope_that_changes_where_the_original_context_ends(build: Build) -> None:
    """Phi-3's: transformers reads all again when an answer crosses that length, and so is it here."""
    scaling = {**LONGROPE, "rope_theta": 500.0, "original_max_position_embeddings": 32}
    changes = {"original_max_position_embeddings": 32, "max_position_embeddings": 128}
    folder = build("phi3", rope_parameters=scaling, **changes)
    prompts = drawn(6, 28, 40, 5, 31, 32)
    said = [reference(folder).greedy(ids, 10) for ids in prompts]
    ((ids, _, _),) = single(folder, (8,), (prompts, 10, []))
    assert ids == said


def test_a_rope_that_changes_with_every_token_is_refused(build: Build) -> None:
    folder = build("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0})
    with groups.single_process(ParallelConfig(device="cpu")):
        model = backend(folder, (1, 1, 1), 8, past_context=True)
        with pytest.raises(UserError, match="its rope is dynamic, and beyond 64 tokens"):
            model.generate([Prompt("", drawn(0, 60)[0], 6)])
        (ids,) = drawn(1, 80)
        assert np.abs(model.losses(ids) - reference(folder).losses(ids)[0]).max() < 2e-5
        assert len(list(model.generate([Prompt("", ids[:60], 5)]))) == 1


@pytest.mark.gloo
@pytest.mark.parametrize("layout", [(1, 1, 1), (1, 4, 1), (1, 4, 2), (2, 2, 1)], ids=str)
def test_hidden_states_are_those_of_training(build: Build, ranks: ModelRanks, layout: tuple[int, int, int]) -> None:
    """In fp64, where nothing but a mistake is left: the cache in uneven pieces against the ring over the whole."""
    (ids,) = drawn(9, 64)
    rows = {}
    whole = {}
    for places, hidden, at, ring in ranks.run(layout, hidden_states, build("qwen3"), layout, ids, [1, 30, 2, 1, 1, 29]):
        rows.update(zip(places.tolist(), hidden, strict=True))
        whole.update(zip(at.tolist(), ring, strict=True))
    assert sorted(rows) == sorted(whole) == list(range(64))
    differences = [np.abs(rows[p] - whole[p]).max() for p in range(64)]
    assert max(differences) < 1e-12 * max(np.abs(row).max() for row in whole.values())


@pytest.mark.gloo
def test_bf16_is_as_near_as_transformers(build: Build, ranks: ModelRanks) -> None:
    """Losses in bf16 against fp64: at most twice as far off as transformers' own in bf16, on any layout."""
    folder = build("llama", torch.bfloat16)
    (ids,) = drawn(11, 64)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, trust_remote_code=False
    ).eval()
    following = torch.tensor(ids[1:])

    def losses(model: Any) -> torch.Tensor:
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
        return torch.nn.functional.cross_entropy(logits, following, reduction="none")

    with torch.inference_mode():
        theirs, exact = losses(model), losses(model.double())
    allowed = 2 * float((theirs - exact).square().mean().sqrt())
    for layout in ((1, 1, 1), (1, 4, 1), (1, 4, 2), (2, 2, 1)):
        for found in ranks.run(layout, bf16_losses, folder, layout, ids):
            assert float((torch.from_numpy(found) - exact).square().mean().sqrt()) < allowed


def test_texts_of_a_group_are_read_once(build: Build) -> None:
    folder = build("llama")
    (haystack, *questions) = drawn(3, 40, 3, 5, 1)
    prompts = [haystack + question for question in questions] + [haystack[:20] + [7] + haystack[20:]]
    said = [reference(folder).greedy(ids, 4) for ids in prompts]
    texts = [(ids + list(answer), ((len(ids), len(ids) + 4),)) for ids, answer in zip(prompts, said, strict=True)]
    with groups.single_process(ParallelConfig(device="cpu")):
        for group in ("", "haystack"):
            ((ids, judged, _),) = ask(folder, (1, 1, 1), (8,), (prompts, 4, texts), group)
            assert ids == said and all(verdict.greedy == (True,) for verdict in judged)


@pytest.mark.gloo
def test_texts_of_a_group_on_ranks(build: Build, ranks: ModelRanks) -> None:
    folder = build("mistral")
    (haystack, *questions) = drawn(4, 43, 2, 6, 1)
    prompts = [haystack + question for question in questions] + [haystack[:21] + [7] + haystack[21:]]
    said = [reference(folder).greedy(ids, 4) for ids in prompts]
    texts = [(ids + list(answer), ((len(ids), len(ids) + 4),)) for ids, answer in zip(prompts, said, strict=True)]
    for layout in ((1, 4, 1), (1, 4, 2)):
        for found in ranks.run(layout, ask, folder, layout, (2,), (prompts, 4, texts), "haystack"):
            ((ids, judged, _),) = found
            assert ids == said and all(verdict.greedy == (True,) for verdict in judged)
    assert RANKS == 4
