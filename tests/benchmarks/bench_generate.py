"""Evaluation with the megatron backend against transformers, one prompt at a time: a needle grid, and decoding.

    python tests/benchmarks/bench_generate.py [--target 2048] [--lengths 40] [--depths 10] [--decode 1024 4096 16384]

Both sides are one thread in one process, in turn for every length, and are timed by the processor seconds they took, so
that a ratio stands on a busy machine too. Both compute logits at the answer's positions alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups
from megatron_ultralong.evaluation.backends.interface import Forced
from megatron_ultralong.evaluation.backends.megatron.megatron_backend import MegatronBackend
from tests.evaluation.backends.model_ranks import backend

VOCABULARY, NEEDLE, QUESTION, ANSWER = 2048, 12, 10, 6


def build(folder: Path, context: int) -> Any:
    """The quickstart's sizes, random weights; the same model in transformers."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def grid(rng: np.random.Generator, hay: np.ndarray, length: int, depths: int) -> list[np.ndarray]:
    """Prompts with their answers, of one length and every depth, in one haystack."""
    question, needle = rng.integers(0, VOCABULARY, QUESTION), rng.integers(0, VOCABULARY, NEEDLE)
    room = length - QUESTION - NEEDLE - ANSWER
    places = [round(depth / max(depths - 1, 1) * room) for depth in range(depths)]
    tail = np.concatenate((question, needle[:ANSWER]))
    return [np.concatenate((hay[:place], needle, hay[place:room], tail)).astype(np.int32) for place in places]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = call()
    return time.process_time() - begun, result


@torch.inference_mode()
def one_at_a_time(model: Any, texts: list[np.ndarray]) -> list[float]:
    """Log-likelihoods of the answers by transformers."""
    found = []
    for ids in texts:
        given = torch.from_numpy(ids.astype(np.int64))[None]
        logits = model(given, use_cache=False, logits_to_keep=ANSWER + 1).logits[0, :-1]
        found.append(float(-torch.nn.functional.cross_entropy(logits, given[0, -ANSWER:], reduction="sum")))
    return found


def needles(ours: MegatronBackend, theirs: Any, target: int, lengths: int, depths: int) -> None:
    rng = np.random.default_rng(0)
    hay = rng.integers(0, VOCABULARY, target)
    totals, tokens, worst = np.zeros(2), 0, 0.0
    for length in np.linspace(target / lengths, target, lengths).round().astype(int):
        if length < QUESTION + NEEDLE + ANSWER + depths:
            continue
        texts = grid(rng, hay, int(length), depths)
        asked = [Forced(ids, ((len(ids) - ANSWER, len(ids)),), "hay") for ids in texts]
        here, judged = timed(lambda asked=asked: dict(ours.judge(asked)))  # type: ignore[misc]
        there, expected = timed(lambda texts=texts: one_at_a_time(theirs, texts))  # type: ignore[misc]
        worst = max(worst, *(abs(judged[i].log_likelihood[0] - value) for i, value in enumerate(expected)))
        totals += (here, there)
        tokens += sum(map(len, texts))
    print(f"needle grid, {lengths} lengths to {target:,} x {depths} depths, {tokens:,} tokens:")
    print(f"  megatron, beginnings read once   {totals[0]:8.1f} s")
    print(f"  transformers, one at a time      {totals[1]:8.1f} s   ratio {totals[1] / totals[0]:.2f}")
    print(f"  largest difference of a log-likelihood: {worst:.1e}")


@torch.inference_mode()
def decoding(ours: MegatronBackend, theirs: Any, lengths: list[int], tokens: int = 24) -> None:
    """Reading a text of each length, then seconds a token, of both."""
    model, rng = ours.model, np.random.default_rng(1)
    print(f"decoding, median of {tokens} tokens:     length   read, tokens/s   s a token   transformers   ratio")
    for length in lengths:
        ids = rng.integers(0, VOCABULARY, length + 1)
        model.make_room(length + 2 * tokens)
        model.begin(ids, 0, length)
        reading, _ = timed(lambda length=length: model.read(length))  # type: ignore[misc]
        cache = transformers.DynamicCache()
        theirs(torch.from_numpy(ids[:length])[None], past_key_values=cache, logits_to_keep=1)
        here, there = [], []
        token = other = int(ids[-1])
        for _ in range(tokens):
            seconds, token = timed(lambda token=token: model.next_token(token))  # type: ignore[misc]
            here.append(seconds)
            given = torch.tensor([[other]])
            seconds, logits = timed(lambda given=given, cache=cache: theirs(given, past_key_values=cache).logits)  # type: ignore[misc]
            there.append(seconds)
            other = int(logits[0, -1].argmax())
            assert token == other
        mine, peer = statistics.median(here), statistics.median(there)
        print(f"{length:40,} {length / reading:16,.0f} {mine:11.4f} {peer:14.4f} {peer / mine:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=int, default=2048)
    parser.add_argument("--lengths", type=int, default=40)
    parser.add_argument("--depths", type=int, default=10)
    parser.add_argument("--decode", type=int, nargs="*", default=[1024, 4096, 16384])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, groups.single_process(ParallelConfig(device="cpu")):
        theirs = build(Path(folder), max([options.target, *options.decode]) + 64)
        ours = backend(Path(folder), (1, 1, 1), 4096)
        needles(ours, theirs, options.target, options.lengths, options.depths)
        decoding(ours, theirs, options.decode)


if __name__ == "__main__":
    main()
