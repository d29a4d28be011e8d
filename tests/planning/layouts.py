"""Layouts of many kinds, on which plans are compared with rehearsals: 128K to 4M tokens, shapes of real models.

What a layer costs does not depend on how many there are, so these have few; the examples are rehearsed at full depth.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.config.sections import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from tests.examples.test_examples import EXAMPLES, MODELS, WANTED, name

LLAMA = MODELS["models/Llama-3.1-8B-Instruct"]
QWEN2 = MODELS["models/Qwen2.5-7B-Instruct"]
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "rope_scaling": None}
SMALL = LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "tie_word_embeddings": True, "head_dim": 64}
K, M = 2**10, 2**20


@dataclasses.dataclass(frozen=True)
class Layout:
    """A job, and one of its ranks."""

    name: str
    config: RunConfig
    model: dict[str, Any]
    processes: int
    rank: int = 0
    document: int = 0


def _layout(
    title: str,
    length: int,
    processes: int,
    *,
    model: dict[str, Any] = LLAMA,
    layers: int = 2,
    rank: int = 0,
    document: int = 0,
    batch: int = 0,
    train: dict[str, Any] | None = None,
    **parallel: Any,
) -> Layout:
    parallel = {"distributed_optimizer": True, "sequence_parallel": parallel.get("tensor", 1) > 1} | parallel
    sizes = ParallelConfig(device="cpu", **parallel)
    copies = processes // (sizes.tensor * sizes.context * sizes.pipeline)
    config = RunConfig(
        model=ModelConfig(hf=Path("model")),
        data=DataConfig(sources=(), sequence_length=length, document_mask=document > 0),
        parallel=sizes,
        train=TrainConfig(steps=1, global_batch_size=batch or copies * 2, **(train or {})),
        optimizer=OptimizerConfig(learning_rate=1e-5),
    )
    return Layout(title, config, model | {"num_hidden_layers": layers}, processes, rank, document)


NARROW = {"vocab_size": 2048, "intermediate_size": 2048}
"""So that neither the loss nor a tile of the MLP is the highest point of a lean layer's step."""
QUICK = [
    _layout("full, tiles, offload", 128 * K, 8, tensor=4, context=2, recompute="full", mlp_chunk=4096, offload=True),
    _layout("selective, heads exchanged", 256 * K, 8, tensor=2, context=4, ulysses=2, recompute="selective", rank=5),
    _layout("nothing recomputed, Qwen3", 128 * K, 8, model=QWEN3, tensor=8, train={"loss_chunk": 4096}),
    _layout("second of four stages", 256 * K, 32, layers=4, tensor=4, context=2, pipeline=4, batch=8, rank=8),
    _layout("lean, heads split, offload", 512 * K, 8, model=LLAMA | NARROW, tensor=8, recompute="full", head_groups=4,
            mlp_chunk=32768, offload=True),
]  # fmt: skip
MORE = [
    _layout("4M full", 4 * M, 256, tensor=8, context=16, recompute="full"),
    _layout("4M selective, a rank in between", 4 * M, 256, tensor=8, context=16, recompute="selective", rank=60),
    _layout("4M last rank", 4 * M, 256, tensor=8, context=16, recompute="selective", rank=127),
    _layout("4M tiles", 4 * M, 256, tensor=8, context=16, recompute="selective", mlp_chunk=4096),
    _layout("4M TP 4 x CP 32", 4 * M, 256, tensor=4, context=32, recompute="full", mlp_chunk=2048),
    _layout("4M heads exchanged", 4 * M, 256, tensor=4, context=32, ulysses=8, recompute="selective"),
    _layout("4M four stages", 4 * M, 512, layers=4, tensor=8, context=16, pipeline=4, batch=8, recompute="full"),
    _layout("4M documents", 4 * M, 256, tensor=8, context=16, recompute="selective", document=M),
    _layout("2M full, offload", 2 * M, 64, tensor=8, context=8, recompute="full", offload=True, mlp_chunk=8192),
    _layout("2M nothing recomputed", 2 * M, 256, tensor=8, context=32),
    _layout("2M all heads exchanged", 2 * M, 64, tensor=4, context=8, ulysses=8, recompute="full"),
    _layout("1M none", M, 256, tensor=8, context=16),
    _layout("1M selective, tiles", M, 32, tensor=4, context=8, recompute="selective", mlp_chunk=8192),
    _layout("1M full, tiles, offload", M, 8, tensor=4, context=2, recompute="full", mlp_chunk=4096, offload=True),
    _layout("1M TP 1", M, 32, context=32, recompute="full"),
    _layout("1M no sequence parallelism", M, 64, tensor=8, context=8, sequence_parallel=False, recompute="full"),
    _layout("1M Qwen2.5", M, 32, model=QWEN2, tensor=4, context=8, recompute="selective"),
    _layout("1M Qwen2.5, tiles, offload", M, 8, model=QWEN2, tensor=4, context=2, recompute="full", mlp_chunk=4096,
            offload=True),
    _layout("1M part recomputed", M, 64, layers=4, tensor=8, context=8, recompute="full", recompute_layers=2),
    _layout("1M part selective", M, 64, layers=4, tensor=8, context=8, recompute="selective", recompute_layers=1),
    _layout("512K key-value heads shared", 512 * K, 64, tensor=16, context=4),
    _layout("512K key-value heads sent twice", 512 * K, 64, tensor=4, context=16, ulysses=4, recompute="full"),
    _layout("512K optimizer whole", 512 * K, 32, tensor=8, context=4, distributed_optimizer=False, recompute="full"),
    _layout("512K small chunks of loss", 512 * K, 16, tensor=8, context=2, train={"loss_chunk": 2048}),
    _layout("512K tied head", 512 * K, 16, model=SMALL, tensor=4, context=4, recompute="selective"),
    _layout("512K SwiGLU unfused", 512 * K, 16, tensor=8, context=2, train={"swiglu_fusion": False}),
    _layout("256K first of two stages", 256 * K, 16, layers=4, tensor=4, context=2, pipeline=2, batch=4),
    _layout("256K last of two stages", 256 * K, 16, layers=4, tensor=4, context=2, pipeline=2, batch=4, rank=15),
    _layout("256K third of four, selective", 256 * K, 32, layers=8, tensor=4, context=2, pipeline=4, batch=8,
            recompute="selective", rank=16),
    _layout("256K stages, offload", 256 * K, 32, layers=8, tensor=4, context=2, pipeline=4, batch=8, recompute="full",
            offload=True, mlp_chunk=2048, rank=8),
    _layout("256K documents", 256 * K, 16, tensor=4, context=4, recompute="selective", document=64 * K),
    _layout("256K short documents", 256 * K, 16, tensor=4, context=4, document=8 * K),
    _layout("128K two samples", 128 * K, 8, tensor=4, context=2, recompute="full", batch=2,
            train={"micro_batch_size": 2}),
    _layout("128K two samples, heads exchanged", 128 * K, 8, tensor=2, context=4, ulysses=4, batch=2, recompute="full",
            train={"micro_batch_size": 2}),
    _layout("128K gradients in bf16", 128 * K, 8, tensor=8, train={"grad_reduce_in_fp32": False}),
    _layout("128K one GPU", 128 * K, 1, recompute="full", mlp_chunk=8192, train={"loss_chunk": 2048}),
    _layout("lean one GPU", 256 * K, 1, model=LLAMA | NARROW, recompute="full", head_groups=8, mlp_chunk=65536,
            offload=True),
    _layout("lean one GPU, inputs on it", 256 * K, 1, model=LLAMA | NARROW, recompute="full", head_groups=2,
            mlp_chunk=65536),
    _layout("lean, wide tiles", 256 * K, 1, recompute="full", head_groups=8, mlp_chunk=65536, offload=True),
    _layout("lean heads exchanged", 512 * K, 8, model=LLAMA | NARROW, tensor=2, context=4, ulysses=4, recompute="full",
            head_groups=4, mlp_chunk=32768, offload=True),
    _layout("lean ring", 512 * K, 8, model=LLAMA | NARROW, tensor=2, context=4, recompute="full", head_groups=4,
            mlp_chunk=32768, offload=True, rank=7),
    _layout("lean selective", 512 * K, 8, model=LLAMA | NARROW, tensor=2, context=4, recompute="selective",
            head_groups=4, mlp_chunk=32768),
    _layout("lean selective, offload", 512 * K, 8, model=LLAMA | NARROW, tensor=2, context=4, recompute="selective",
            head_groups=4, mlp_chunk=32768, offload=True),
    _layout("lean Qwen3", 512 * K, 2, model=QWEN3 | NARROW, tensor=2, recompute="full", head_groups=4, mlp_chunk=65536),
    _layout("lean Qwen2.5", 512 * K, 2, model=QWEN2 | NARROW, tensor=2, recompute="full", head_groups=2,
            mlp_chunk=65536),
    _layout("lean, gradients unfused", 512 * K, 2, model=LLAMA | NARROW, tensor=2, recompute="full", head_groups=4,
            mlp_chunk=65536, train={"gradient_accumulation_fusion": False}),
    _layout("lean, gradients in bf16", 256 * K, 1, model=LLAMA | NARROW, recompute="full", head_groups=8,
            mlp_chunk=65536, offload=True, train={"grad_reduce_in_fp32": False}),
    _layout("lean stages", 512 * K, 4, layers=4, model=LLAMA | NARROW, tensor=2, pipeline=2, batch=4, recompute="full",
            head_groups=2, mlp_chunk=65536),
]  # fmt: skip


def examples() -> list[Layout]:
    """Both stages of every example, on as many processes as it asks for; of lean layers two."""
    found = []
    for example in EXAMPLES:
        for stage in ("extend", "sft"):
            config = load_config(example / f"{stage}.toml")
            parallel = dataclasses.replace(config.parallel, device="cpu")
            model = MODELS[str(config.model.hf)]
            if parallel.head_groups:  # an hour of operators, tile by tile
                model = model | {"num_hidden_layers": 2}
            config = dataclasses.replace(config, parallel=parallel)
            found.append(Layout(f"{name(example)} {stage}", config, model, WANTED[name(example)][-1]))
    return found
