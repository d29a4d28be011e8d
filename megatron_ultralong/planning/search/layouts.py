"""Every way to lay one run over a cluster: TP x CP (ring x ulysses) x PP x DP, microbatch, what is kept and how.

Sizes are divisors; whether they go together is for `config.checks` to say, whose sentences become the reasons. A few
thousand configurations for a thousand GPUs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from megatron_ultralong.config.checks import check_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.context_parallel import head_groups
from megatron_ultralong.errors import UserError

TILE = 4096
"""Positions of a rank in an MLP tile, where tiles are tried: as large as makes a product efficient."""
_MOST_AT_ONCE = 8
"""Samples in a microbatch that are tried."""


@dataclasses.dataclass(frozen=True)
class Saving:
    """How activations are kept, the one that needs least memory last in `SAVINGS`.

    Attributes:
        recompute: parallel.recompute.
        offload: parallel.offload.
        tiled: the MLP is in tiles of TILE positions.
        groups: parallel.head_groups.
        host_optimizer: optimizer.offload_fraction is 1, else what the run has.
    """

    recompute: Literal["none", "selective", "full"]
    offload: bool
    tiled: bool
    groups: int = 0
    host_optimizer: bool = False


SAVINGS = (
    Saving("none", False, False),
    Saving("none", False, True),
    Saving("selective", False, False),
    Saving("selective", False, True),
    Saving("full", False, False),
    Saving("full", False, True),
    Saving("full", True, False),
    Saving("full", True, True),
)


def leaner(config: RunConfig, hf_config: dict[str, Any]) -> Iterator[Saving]:
    """What is tried where none of `SAVINGS` fits, what costs least time first: groups of heads, Adam on the host."""
    groups = head_group_counts(config, hf_config)
    for host in (False, True):
        for count in ([0] if host else []) + groups:
            yield Saving("full", True, True, count, host)


def head_group_counts(config: RunConfig, hf_config: dict[str, Any]) -> list[int]:
    """Numbers of groups that a rank's heads can be cut into, ascending."""
    heads = hf_config["num_attention_heads"]
    kv_heads = hf_config.get("num_key_value_heads") or heads
    N, K = heads // config.parallel.tensor, max(1, kv_heads // config.parallel.tensor)
    return [n for n in divisors(N) if head_groups.problem(N, K, n) is None]


def divisors(number: int) -> list[int]:
    """Of a whole number above 0, ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def layouts(base: RunConfig, hf_config: dict[str, Any], world_size: int) -> Iterator[RunConfig]:
    """Configurations of all sizes for so many ranks, without recomputation, allowed or not."""
    layers, heads = hf_config["num_hidden_layers"], hf_config["num_attention_heads"]
    batch = base.train.global_batch_size
    for tensor in divisors(heads):
        for pipeline in divisors(layers):
            if world_size % (tensor * pipeline):
                continue
            rest = world_size // (tensor * pipeline)
            for context in divisors(rest):
                for ulysses in divisors(context):
                    parallel = dataclasses.replace(
                        base.parallel,
                        tensor=tensor,
                        pipeline=pipeline,
                        context=context,
                        ulysses=ulysses,
                        sequence_parallel=tensor > 1,
                        distributed_optimizer=True,
                        first_stage_layers=0,
                        last_stage_layers=0,
                        **_saved(SAVINGS[0]),
                    )
                    for size in _microbatches(batch, rest // context):
                        train = dataclasses.replace(base.train, micro_batch_size=size)
                        yield dataclasses.replace(base, parallel=parallel, train=train)


def _microbatches(batch: int, replicas: int) -> Iterator[int]:
    """Sizes to try: 1 always, for the reason why it is not allowed; powers of two beyond."""
    yield 1
    size = 2
    while size <= _MOST_AT_ONCE and batch % (size * replicas) == 0:
        yield size
        size *= 2


def _saved(saving: Saving) -> dict[str, Any]:
    return {
        "recompute": saving.recompute,
        "recompute_layers": 0,
        "offload": saving.offload,
        "mlp_chunk": TILE if saving.tiled else 0,
        "head_groups": saving.groups,
    }


def with_saving(config: RunConfig, saving: Saving) -> RunConfig:
    """The same layout, activations kept in another way."""
    saved = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **_saved(saving)))
    if not saving.host_optimizer:
        return saved
    return dataclasses.replace(saved, optimizer=dataclasses.replace(config.optimizer, offload_fraction=1.0))


def problem(config: RunConfig, hf_config: dict[str, Any], world_size: int) -> str | None:
    """Why the configuration cannot run, as `config.checks` says it, or None."""
    try:
        check_config(config, hf_config=hf_config, world_size=world_size, inputs=False)
    except UserError as error:
        return str(error)
    return None


def name_of(config: RunConfig) -> str:
    """A layout in a few words."""
    parallel, batch = config.parallel, config.train.micro_batch_size
    ring = parallel.context // parallel.ulysses
    split = f" ({parallel.ulysses} ulysses x {ring} ring)" if parallel.ulysses > 1 else ""
    kept = f", microbatch {batch}, " if batch > 1 else ", "
    kept += parallel.recompute + (", offload" if parallel.offload else "") + (", tiles" if parallel.mlp_chunk else "")
    kept += f", {parallel.head_groups} groups of heads" if parallel.head_groups else ""
    kept += ", Adam on the host" if config.optimizer.offload_fraction == 1 else ""
    return f"TP {parallel.tensor} x CP {parallel.context}{split} x PP {parallel.pipeline}{kept}"
