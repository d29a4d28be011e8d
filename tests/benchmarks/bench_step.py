"""One training step of the same Llama: this project's loop against transformers and torch's AdamW.

    python tests/benchmarks/bench_step.py [--models tiny 100m] [--steps 5]

Both in one process and fp32, with the same weights' shapes, samples of 2,048 tokens and threads; a step is forward,
backward, clipping and AdamW. Steps alternate; medians are compared. Ours runs megatron-core's layers under the CPU
backend's function mode, the peer outside it; what the mode costs is the calls it sees in a step times what it
adds to one. What bounds a step is its matrix products: the same run measures an fp32 GEMM.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ultralong.config.sections import (
    DataConfig,
    DataSource,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import tokenize_corpus
from megatron_ultralong.engine import cpu, groups
from megatron_ultralong.planning.flops import ModelShape, causal_pairs, step_flops
from megatron_ultralong.training.setup import prepare
from megatron_ultralong.training.step import train_step

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.data.conftest import train_tokenizer

LENGTH = 2048
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768},
    "100m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
VOCABULARY = {"tiny": 1024, "100m": 16384}


def folder(root: Path, name: str) -> LlamaConfig:
    """A model's folder and packed samples below `root`."""
    heads = SHAPES[name]["num_attention_heads"]
    config = LlamaConfig(
        vocab_size=VOCABULARY[name],
        num_key_value_heads=heads,
        max_position_embeddings=LENGTH,
        attn_implementation="sdpa",
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=False,
        **SHAPES[name],
    )
    (root / "hf").mkdir()
    config.save_pretrained(root / "hf")
    text = Path(statistics.__file__).read_text()
    train_tokenizer(root / "hf", text)
    with (root / "corpus.jsonl").open("w") as stream:
        for path in sorted(Path(statistics.__file__).parent.glob("*.py"))[:60]:
            stream.write(json.dumps({"text": path.read_text(errors="replace")}) + "\n")
    tokenize_corpus([root / "corpus.jsonl"], root / "corpus", load_tokenizer(root / "hf"), Fields())
    write_packed_index(open_corpus(root / "corpus"), root / "packed", PackOptions(sequence_length=LENGTH))
    return config


def timed(step: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def gemm_gflops() -> float:
    """Of an fp32 GEMM of 2,048 cubed on these threads, at best."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: a @ b) for _ in range(5)) / 1e9


def compare(name: str, steps: int) -> None:
    """Print one model's row."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        hf = folder(root, name)
        config = RunConfig(
            model=ModelConfig(hf=root / "hf", init="random"),
            data=DataConfig(sources=(DataSource(index=root / "packed"),), sequence_length=LENGTH),
            train=TrainConfig(steps=100, global_batch_size=1, precision="fp32"),
            parallel=ParallelConfig(device="cpu"),
        )
        run = prepare(config)
        theirs = LlamaForCausalLM(hf).train()
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-5, betas=(0.9, 0.95), weight_decay=0.1)
        batches = [run.data.read(k).tokens for k in range(steps + 1)]

        def their_step(k: int) -> None:
            tokens = torch.from_numpy(batches[k])[None]
            optimizer.zero_grad()
            theirs(tokens, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()

        train_step(run, 0)
        with without_function_mode():
            their_step(0)
        ours_seconds, their_seconds = [], []
        for k in range(1, steps + 1):
            ours_seconds.append(timed(lambda k=k: train_step(run, k)))
            with without_function_mode():
                their_seconds.append(timed(lambda k=k: their_step(k)))
        with Calls() as seen:
            train_step(run, steps + 1)
        groups.finalize()
    flops = step_flops(ModelShape.from_hf(hf.to_dict()), LENGTH, LENGTH, causal_pairs([LENGTH]))
    ours, peer = statistics.median(ours_seconds), statistics.median(their_seconds)
    rate = flops / ours / 1e9
    print(
        f"{name}: ours {ours:.3f} s, transformers {peer:.3f} s, ratio {ours / peer:.3f}; "
        f"{rate:.0f} GFLOPS of the model, GEMM {gemm_gflops():.0f}"
    )
    mode = mode_seconds()
    print(f"  function mode: {seen.count} calls a step x {1e6 * mode:.1f} us = {seen.count * mode / ours:.2%} of it")


class Calls(TorchFunctionMode):
    """Counts the calls that a function mode sees."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def mode_seconds(calls: int = 20_000) -> float:
    """What the CPU backend's function mode adds to one call, at best of five."""
    x = torch.zeros(1)

    def loop() -> None:
        for _ in range(calls):
            torch.neg(x)

    inside = min(timed(loop) for _ in range(5))
    with without_function_mode():
        return (inside - min(timed(loop) for _ in range(5))) / calls


class without_function_mode:  # noqa: N801
    """The peer runs as it would alone: outside the CPU backend's function mode."""

    def __enter__(self) -> None:
        assert cpu._mode is not None
        cpu._mode.__exit__(None, None, None)

    def __exit__(self, *_: object) -> None:
        assert cpu._mode is not None
        cpu._mode.__enter__()


def main() -> None:
    """Compare each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "100m"], choices=SHAPES)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in arguments.models:
        compare(name, arguments.steps)


if __name__ == "__main__":
    main()
