"""A rehearsal of a few layers of each pipeline stage, and what the others would add, by formula.

A layer does what the one before it did, and one that works tile by tile (a lean layer, an MLP in chunks) takes hundreds
or thousands of operators. Left out are their weights and what they keep, which planning/memory.py gives: a rehearsal
differs from it by 2 % or less.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.config.stages import layers_of_stages
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.planning.memory import predict

OF_TILED = 2
"""Layers of a stage that are rehearsed with parallel.head_groups or mlp_chunk, unless more are asked for."""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What the layers of a rank that were not rehearsed would add, in bytes by planning/memory.py.

    Attributes:
        device: to the most that is held on the device.
        host: to what is in host memory.
    """

    device: int = 0
    host: int = 0


def shallow(config: RunConfig, hf_config: dict[str, Any], layers: int) -> tuple[RunConfig, dict[str, Any]]:
    """The run with at most `layers` layers in each pipeline stage; 0: `OF_TILED` of tiled layers, else all."""
    hf_config, parallel = completed(hf_config), config.parallel
    tiled = parallel.head_groups or parallel.mlp_chunk
    most = layers or (OF_TILED if tiled else hf_config["num_hidden_layers"])
    stages = [min(most, n) for n in layers_of_stages(parallel, hf_config["num_hidden_layers"])]
    ends = ("first_stage_layers", "last_stage_layers", "recompute_layers")
    parallel = dataclasses.replace(parallel, **{name: min(getattr(parallel, name), most) for name in ends})
    return dataclasses.replace(config, parallel=parallel), {**hf_config, "num_hidden_layers": sum(stages)}


def left_out(
    whole: tuple[RunConfig, dict[str, Any]], cut: tuple[RunConfig, dict[str, Any]], ranks: int, stage: int, gpu: bool
) -> LeftOut:
    """What `cut` lacks of `whole`: each a run and its model, on a rank of a pipeline stage."""
    every, some = (predict(config, model, ranks, stage, gpu) for config, model in (whole, cut))
    return LeftOut(every.total - some.total, every.host - some.host)
