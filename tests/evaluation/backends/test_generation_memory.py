"""The memory formula against what PyTorch's allocator is asked for while a text is read and continued."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.planning.flops import ModelShape
from megatron_ultralong.planning.generation_memory import generation_memory, kv_cache_bytes
from tests.context_parallel.test_ring_memory import peak_bytes
from tests.convert.tiny_models import Build
from tests.evaluation.backends.model_ranks import Layout, ModelRanks, backend

LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256)
SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
CHUNK, TOKENS = 1024, 8192  # a kernel thread's scratch is 0.6 MB, which the formula leaves out


def measure(folder: Path, layout: Layout) -> tuple[int, int, list[int]]:
    """Peaks of all, of reading alone, and of one token after more and more text."""
    model = backend(folder, layout, CHUNK).model
    ids = np.random.default_rng(0).integers(1, 100, TOKENS)

    def read() -> None:
        model.begin(ids, 0, TOKENS)
        model.read(TOKENS - 1)

    def whole() -> None:
        model.make_room(TOKENS)
        read()
        model.next_token(3)

    def token() -> None:
        model.next_token(5)

    whole()  # what is made once (plans, connections) is there
    found = []
    for _ in range(3):
        model.cache = None
        found.append([peak_bytes(call)[0] for call in (whole, read)])
    steps = []
    for length in (TOKENS // 2, TOKENS - 1):
        model.begin(ids, 0, TOKENS)
        model.read(length)
        steps.append(peak_bytes(token)[0])
    # The least of three: gloo's threads let go of a message's buffers when they get to it.
    at_most, reading = map(min, zip(*found, strict=True))
    return at_most, reading, steps


@pytest.mark.gloo
@pytest.mark.parametrize("layout, ffn", [((1, 4, 1), 64), ((1, 4, 2), 64), ((2, 2, 1), 512)], ids=str)
def test_memory_is_the_formula(build: Build, ranks: ModelRanks, layout: Layout, ffn: int) -> None:
    folder = build("llama", max_position_embeddings=TOKENS, intermediate_size=ffn, **SIZES)
    shape = ModelShape.from_hf(json.loads((folder / "config.json").read_text()))
    parallel = ParallelConfig(tensor=layout[0], context=layout[1], ulysses=layout[2])
    predicted = generation_memory(shape, parallel, tokens=TOKENS, chunk=CHUNK, element=4)
    for whole, reading, steps in ranks.run(layout, measure, folder, layout):
        assert whole == pytest.approx(predicted.cache + predicted.chunk, rel=0.1)
        assert reading == pytest.approx(predicted.chunk, rel=0.1)
        assert max(steps) < 0.02 * predicted.chunk  # a token: nothing that grows with the text
        assert steps[1] - steps[0] < 0.02 * predicted.cache / 2  # some KB of scratch; the cache it reads has doubled


def test_the_cache_of_llama_8b_at_4m() -> None:
    """131,072 bytes a token in bf16, 550 GB in all, 4.3 GB a rank of 128."""
    tokens = 4 * 2**20
    assert kv_cache_bytes(LLAMA_8B, ParallelConfig(), tokens, 2) == 131072 * tokens
    for ulysses in (1, 2):  # one key head a rank: ulysses 2 holds it twice
        parallel = ParallelConfig(tensor=8, context=16, ulysses=ulysses)
        assert kv_cache_bytes(LLAMA_8B, parallel, tokens, 2) == 131072 * tokens // 128 * ulysses
    whole = generation_memory(LLAMA_8B, ParallelConfig(tensor=8, context=16), tokens=tokens, chunk=4096, element=2)
    assert (whole.cache, round(whole.weights / 1e9, 1)) == (4 * 2**30, 2.0)
    assert whole.chunk < 0.3e9
