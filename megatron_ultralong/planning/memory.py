"""Memory of a training step by part, on any rank, computed before anything is built.

Pure arithmetic, some hundred microseconds a call at first, and less where shapes return: what a dry run prints beside
what it measures, what a search over layouts calls. Tensors are taken and dropped in the order in which the code makes
and frees them (memory_parts/), so the peak is that of a moment, which it names. docs/memory.md has each part's formula.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.config.stages import layers_of_stages
from megatron_ultralong.planning.flops import ModelShape
from megatron_ultralong.planning.memory_parts import outside_memory, standing_memory
from megatron_ultralong.planning.memory_parts.head_memory import eager_loss_memory, loss_memory
from megatron_ultralong.planning.memory_parts.share import Share, model_of, share_of
from megatron_ultralong.planning.memory_parts.stage_memory import Stage, StageMemory, stage_memory

__all__ = ["PlannedMemory", "StepMemory", "eager_loss_memory", "loss_memory", "predict"]


@dataclasses.dataclass
class StepMemory:
    """Bytes on one rank.

    Attributes:
        weights: the model's parameters.
        gradients: megatron-core's gradient buffers.
        optimizer: Adam's moments and, for bf16, the fp32 main weights; of that what is on the device.
        buffers: made by the first step and kept: the gather buffer of sequence parallelism, the table of positions.
        activations: what forward passes leave for their backward, at most.
        attention: at most while one layer attends in forward, beyond what was held before.
        loss: at most in the head and the loss, gradients of both included, beyond what was held before.
        peak: at most during the step, beyond the first four.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    buffers: int = 0
    activations: int = 0
    attention: int = 0
    loss: int = 0
    peak: int = 0

    @property
    def standing(self) -> int:
        """What is there between steps."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def total(self) -> int:
        """All tensors at once, at the step's highest point."""
        return self.standing + self.peak


@dataclasses.dataclass
class PlannedMemory(StepMemory):
    """With what no measurement of tensors shows.

    Attributes:
        moment: where the peak is.
        kept: of `peak`, what forward passes left for their backward.
        scratch: how much further attention's kernels may go for their own use, as read in their sources.
        communication: of the groups' communicators and the driver, an estimate, outside PyTorch's allocator.
        margin: for what the allocator loses to fragments.
        host: in the host's memory: activations, and the optimizer's share there.
    """

    moment: str = ""
    kept: int = 0
    scratch: int = 0
    communication: int = 0
    margin: int = 0
    host: int = 0

    @property
    def needed(self) -> int:
        """What the device should have: with scratch space, communicators and a margin."""
        return self.total + self.scratch + self.communication + self.margin


def predict(config: RunConfig, hf_config: dict[str, Any], world_size: int, stage: int, gpu: bool) -> PlannedMemory:
    """Memory of a step on a rank of pipeline stage `stage`, which computes on a GPU or not."""
    shape, kind, tied = model_of(hf_config)
    share = share_of(config, shape, kind, gpu)
    parallel, train = config.parallel, config.train
    copies = world_size // (parallel.tensor * parallel.pipeline)
    microbatches = train.global_batch_size // (train.micro_batch_size * (copies // parallel.context))
    layers, last = layers_of_stages(parallel, shape.layers)[stage], stage == parallel.pipeline - 1
    held = standing_memory.parameters(shape, kind, parallel.tensor, layers, stage == 0, last, tied)
    owned = -(-held // copies) if parallel.distributed_optimizer else held
    gradient = 4 if train.grad_reduce_in_fp32 else share.element
    found = _stage(config, shape, share, layers, stage, microbatches, tied)
    update = standing_memory.widened_gradients(config, owned)
    memory = PlannedMemory(
        weights=held * share.element,
        gradients=held * gradient,
        optimizer=standing_memory.optimizer_bytes(config, owned),
        buffers=standing_memory.gather_buffer(share) + standing_memory.rotary_table(config, shape, share),
        activations=found.activations,
        attention=found.attention,
        loss=found.loss,
        peak=max(found.peak, update),
        moment=found.moment if found.peak >= update else "update",
        kept=found.kept if found.peak >= update else 0,
        scratch=max(0, found.with_scratch - max(found.peak, update)) if gpu else 0,
        host=found.host + standing_memory.host_bytes(config, shape, owned),
    )
    if gpu:
        memory.communication = outside_memory.communication(parallel, copies // parallel.context)
        memory.margin = outside_memory.margin(memory.peak)
    return memory


def _stage(
    config: RunConfig, shape: ModelShape, share: Share, layers: int, stage: int, microbatches: int, tied: bool
) -> StageMemory:
    parallel = config.parallel
    waiting = parallel.pipeline - stage
    recomputed = 0 if parallel.recompute == "none" else min(parallel.recompute_layers or layers, layers)
    place = Stage(
        layers=layers,
        recompute=parallel.recompute,
        recomputed=recomputed,
        offload=parallel.offload,
        first=stage == 0,
        last=stage == parallel.pipeline - 1,
        flying=min(microbatches, waiting),
        steady=microbatches > waiting,
        tensor=parallel.tensor,
        vocabulary=-(-shape.vocabulary // parallel.tensor),
        tied=tied and parallel.pipeline == 1,
        loss_chunk=config.train.loss_chunk,
    )
    return stage_memory(share, place)
