"""What a GPU launches: operators of a ring call, a layer and a training step by module, and what waits for the GPU.

    python tests/benchmarks/count_operators.py [--recompute none|selective|full] [--layers 32]

Llama-3.1-8B's shapes at 4,194,304 tokens, one of 256 ranks of TP 8 x CP 16, on tensors without values: what PyTorch
dispatches on a GPU's path, without views, memory and messages. Not times.
"""

from __future__ import annotations

import argparse
import collections
import logging
import warnings
from pathlib import Path
from typing import Any

from megatron_ultralong.config.sections import DataConfig, ModelConfig, ParallelConfig, RunConfig, TrainConfig
from megatron_ultralong.rehearsal import operators
from megatron_ultralong.rehearsal.rehearse import Rehearsal, rehearse

LENGTH, WORLD, RANK = 4_194_304, 256, 60
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}


def counted(layers: int, recompute: str, length: int = LENGTH, document: int = 0) -> Rehearsal:
    """A step of a model of so many layers."""
    parallel = ParallelConfig(
        tensor=8,
        context=16,
        sequence_parallel=True,
        distributed_optimizer=True,
        recompute=recompute,  # type: ignore[arg-type]
        device="cpu",
    )
    config = RunConfig(
        model=ModelConfig(hf=Path("model")),
        data=DataConfig(sequence_length=length, sources=(), document_mask=document > 0),
        parallel=parallel,
        train=TrainConfig(steps=1, global_batch_size=2),
    )
    hf_config = {**LLAMA, "num_hidden_layers": layers}
    return rehearse(config, hf_config, WORLD, RANK, document=document)


def by_part(found: Rehearsal) -> collections.Counter[str]:
    """Operators beside attention's kernels."""
    return collections.Counter({part: operators.own(counts) for part, counts in found.operators.items()})


def main() -> None:
    """Print the table of docs/training.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recompute", default="none", choices=("none", "selective", "full"))
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    two, three = (by_part(counted(layers, options.recompute)) for layers in (2, 3))
    whole = counted(options.layers, options.recompute)
    step, layer = by_part(whole), three - two
    print(f"| part, recompute {options.recompute} | a layer | a step of {options.layers} |\n|---|---|---|")
    for part, count in step.most_common():
        print(f"| {part} | {layer[part] or ''} | {count:,} |")
    print(f"| in all | {layer.total()} | {step.total():,} |")
    kernels = sum(counts.total() for counts in whole.operators.values()) - step.total()
    print(f"\nbeside {kernels:,} of attention's kernels; waits for the GPU:")
    for where, times in whole.synchronisations.items():
        print(f"  {where} ({times})")


if __name__ == "__main__":
    main()
