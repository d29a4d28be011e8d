"""Over which ranks a model can be evaluated: checked before a process is joined or a weight read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel.kernel_choice import Heads
from megatron_ultralong.context_parallel.requirements import tensor_problem, ulysses_problem
from megatron_ultralong.errors import raise_problems
from megatron_ultralong.rope.config_json import head_dim


def check_layout(parallel: ParallelConfig, hf_config: dict[str, Any], world_size: int, prefill_chunk: int) -> None:
    """Raise if the model cannot be evaluated so.

    Raises:
        UserError: every mistake, one a line, with its field, value and mend.
    """
    raise_problems("the layout", list(_problems(parallel, hf_config, world_size, prefill_chunk)))


def _problems(
    parallel: ParallelConfig, hf_config: dict[str, Any], world_size: int, prefill_chunk: int
) -> Iterator[str]:
    sizes = {"tensor": parallel.tensor, "context": parallel.context, "ulysses": parallel.ulysses}
    small = [f"parallel.{name} is {size}; give 1 or more." for name, size in sizes.items() if size < 1]
    if prefill_chunk < 1:
        small.append(f"prefill_chunk is {prefill_chunk}; give 1 token or more.")
    yield from small
    if small:
        return
    if parallel.pipeline > 1:
        yield (
            f"parallel.pipeline is {parallel.pipeline}, but evaluation has no pipeline: a token would wait for its "
            "stages in turn; give 1, and spread the model by parallel.tensor."
        )
    if parallel.attention != "torch":
        yield f'parallel.attention is "{parallel.attention}", which keeps no cache; set it to "torch".'
    if parallel.sequence_parallel:
        yield "parallel.sequence_parallel is true, and a single token cannot be split; set it to false."
    if parallel.context % parallel.ulysses:
        yield (
            f"parallel.ulysses is {parallel.ulysses}, which does not divide parallel.context {parallel.context}; give "
            "a divisor of it."
        )
    if world_size != parallel.tensor * parallel.context:
        yield (
            f"{world_size} processes are not parallel.tensor {parallel.tensor} x parallel.context {parallel.context} "
            f"= {parallel.tensor * parallel.context}; start so many (torchrun --nproc-per-node) or mend the sizes."
        )
    heads = hf_config["num_attention_heads"]
    kv_heads = hf_config.get("num_key_value_heads") or heads
    problem = tensor_problem(heads, kv_heads, parallel.tensor)
    if problem is not None:
        yield f"parallel.tensor is {parallel.tensor}, {problem}"
        return
    problem = ulysses_problem(heads // parallel.tensor, max(kv_heads // parallel.tensor, 1), parallel.ulysses)
    if problem is not None:
        yield f"parallel.ulysses is {parallel.ulysses}, {problem}"


def heads_of(parallel: ParallelConfig, hf_config: dict[str, Any], precision: str, device: torch.device) -> Heads:
    """What one rank attends with."""
    heads, ranks = hf_config["num_attention_heads"], parallel.tensor * parallel.ulysses
    kv_heads = hf_config.get("num_key_value_heads") or heads
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Heads(device, dtype, heads // ranks, max(kv_heads // ranks, 1), head_dim(hf_config))
