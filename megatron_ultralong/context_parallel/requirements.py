"""Which attention, context-parallel and Transformer Engine settings go together: checked before anything is built.

Pure arithmetic, no torch. What Transformer Engine refuses is read in its sources
(transformer_engine/pytorch/attention/dot_product_attention), which tests/engine/test_transformer_engine.py reads too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_ultralong.config.sections import ParallelConfig, RunConfig
from megatron_ultralong.context_parallel import head_groups
from megatron_ultralong.engine import transformer_engine


def attention_problems(config: RunConfig, hf_config: dict[str, Any]) -> Iterator[str]:
    """Each mistake in a sentence with its field, value and mend; sizes are positive and tensor divides the heads."""
    yield from _heads_for_sequence(config.parallel, hf_config)
    yield from _head_groups(config.parallel, hf_config)
    yield from _kernel(config.parallel)
    yield from _transformer_engine(config)


def tensor_problem(heads: int, kv_heads: int, tensor: int) -> str | None:
    """Why a model's heads cannot be spread over `tensor` ranks, or None: they can."""
    if heads % tensor:
        return f"which does not divide the model's {heads} attention heads; give a divisor of {heads}."
    if kv_heads % tensor and tensor % kv_heads:
        return (
            f"neither a divisor nor a multiple of the model's {kv_heads} key-value heads; "
            f"give a divisor of {heads} that is one."
        )
    return None


def ulysses_problem(heads: int, kv_heads: int, ulysses: int) -> str | None:
    """Why these heads of one rank cannot be spread over `ulysses` ranks, or None: they can."""
    if heads % ulysses:
        return f"which does not divide a rank's {heads} attention heads; give a divisor of {heads}."
    if kv_heads % ulysses and ulysses % kv_heads:
        return (
            f"neither a divisor nor a multiple of a rank's {kv_heads} key-value heads; "
            f"give a divisor of {heads} that is one."
        )
    return None


def _heads_for_sequence(parallel: ParallelConfig, hf_config: dict[str, Any]) -> Iterator[str]:
    """Whether the context-parallel ranks and each rank's heads divide over parallel.ulysses."""
    context, ulysses = parallel.context, parallel.ulysses
    if context % ulysses:
        yield f"parallel.ulysses is {ulysses}, which does not divide parallel.context {context}; give a divisor of it."
        return
    heads = hf_config["num_attention_heads"]
    kv_heads = hf_config.get("num_key_value_heads") or heads
    if heads % parallel.tensor or (kv_heads % parallel.tensor and parallel.tensor % kv_heads):
        return  # named by _sharding
    heads, kv_heads = heads // parallel.tensor, max(kv_heads // parallel.tensor, 1)
    if parallel.attention == "torch":
        problem = ulysses_problem(heads, kv_heads, ulysses)
        if problem is not None:
            yield f"parallel.ulysses is {ulysses}, {problem}"
        return
    trading = {"a2a": ("parallel.context", context), "a2a+p2p": ("parallel.ulysses", ulysses)}
    name, size = trading.get(parallel.cp_comm_type, ("", 1))
    for value, what in ((heads, "attention heads"), (kv_heads, "key-value heads")):
        if value % size:
            yield (
                f'parallel.cp_comm_type is "{parallel.cp_comm_type}" and {name} {size} does not divide a rank\'s '
                f'{value} {what}; give a divisor of {value}, or set parallel.attention to "torch".'
            )


def _head_groups(parallel: ParallelConfig, hf_config: dict[str, Any]) -> Iterator[str]:
    """What the memory-lean layer needs, and how it cuts a rank's heads."""
    count = parallel.head_groups
    if not count:
        return
    given = f"parallel.head_groups is {count}"
    if parallel.recompute == "none":
        yield f'{given} with parallel.recompute "none"; set that to "full" or "selective", or remove head_groups.'
    if parallel.recompute_layers:
        yield f"{given} with parallel.recompute_layers {parallel.recompute_layers}; remove one: it is of every layer."
    if parallel.attention == "te":
        yield f'{given} with parallel.attention "te", whose layers it does not know; set attention to "torch".'
    heads = hf_config["num_attention_heads"]
    kv_heads = hf_config.get("num_key_value_heads") or heads
    tensor = parallel.tensor
    if heads % tensor:
        return  # named by _sharding
    if kv_heads % tensor:
        yield (
            f"{given} with parallel.tensor {tensor}, which does not divide the model's {kv_heads} key-value heads; "
            "set one of them lower."
        )
        return
    cut = head_groups.problem(heads // tensor, kv_heads // tensor, count)
    if cut is not None:
        yield f"{given}, {cut}"
        return
    group = head_groups.HeadGroups.of(heads // tensor, kv_heads // tensor, count)
    if parallel.attention == "torch" and ulysses_problem(group.queries, group.keys, parallel.ulysses) is not None:
        yield (
            f"{given} with parallel.ulysses {parallel.ulysses}, over which a group's {group.queries} attention heads "
            f"and {group.keys} key-value heads do not divide; give fewer groups, or a smaller ulysses."
        )


def _kernel(parallel: ParallelConfig) -> Iterator[str]:
    """A kernel that nothing would use."""
    if parallel.kernel != "auto" and parallel.attention == "te":
        yield (
            f'parallel.kernel is "{parallel.kernel}", which only parallel.attention "torch" reads; remove it, or set '
            'parallel.attention to "torch".'
        )
    elif parallel.kernel not in ("auto", "torch") and parallel.device == "cpu":
        yield (
            f'parallel.kernel is "{parallel.kernel}" with parallel.device "cpu", where that kernel does not run; '
            'set parallel.kernel to "auto".'
        )


def _transformer_engine(config: RunConfig) -> Iterator[str]:
    """What Transformer Engine does not do, or is asked of it where it is not used."""
    parallel, kind = config.parallel, config.parallel.cp_comm_type
    if parallel.attention == "torch":
        if kind != "p2p":
            yield (
                f'parallel.cp_comm_type is "{kind}", which only parallel.attention "te" reads; remove it, and set '
                "parallel.ulysses to exchange heads for sequence."
            )
        return
    problem = transformer_engine.problem()
    if problem is not None:
        yield problem
    if parallel.device == "cpu":
        yield 'parallel.device is "cpu" with parallel.attention "te", which needs a GPU; set attention to "torch".'
    if config.train.precision != "bf16":
        yield (
            f'train.precision is "{config.train.precision}", in which Transformer Engine has no flash attention; '
            'set it to "bf16", or parallel.attention to "torch".'
        )
    if parallel.recompute == "selective" and parallel.recompute_layers:
        yield (
            f'parallel.recompute_layers is {parallel.recompute_layers} with parallel.recompute "selective", which '
            'under parallel.attention "te" is of every layer\'s MLP; remove it, or set recompute to "full".'
        )
    if kind == "a2a+p2p" and not 1 < parallel.ulysses < parallel.context:
        yield (
            f'parallel.cp_comm_type is "a2a+p2p" with parallel.ulysses {parallel.ulysses} of parallel.context '
            f'{parallel.context}; give ulysses a divisor between the two, or set cp_comm_type to "p2p" or "a2a".'
        )
    elif kind != "a2a+p2p" and parallel.ulysses > 1:
        yield (
            f'parallel.ulysses is {parallel.ulysses}, which parallel.attention "te" reads only with '
            f'parallel.cp_comm_type "a2a+p2p", not "{kind}"; change one of them.'
        )
    masked = config.data.mask_field
    if masked and config.padded_length > config.data.sequence_length:
        yield (
            f'data.pad_to_divisible is true with {masked} under parallel.attention "te", which must divide '
            'each document, not the sample; set parallel.attention to "torch", which takes any document lengths.'
        )
    if masked and parallel.context > 1 and not transformer_engine.takes_documents(kind):
        first = transformer_engine.named(transformer_engine.DOCUMENTS[kind])
        yield (
            f'{masked} is true with parallel.cp_comm_type "{kind}", which takes documents from Transformer '
            f'Engine {first} on; set it to "p2p", or parallel.attention to "torch", which takes any document lengths.'
        )
