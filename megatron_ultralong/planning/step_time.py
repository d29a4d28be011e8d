"""Seconds of a training step by part, computed before anything runs: what a plan sorts its layouts by.

A step is the pipeline's schedule over microbatches of `layer_time`'s layers, the head and its loss on the last stage,
and what follows the last microbatch: gradients over the replicas, the update. A few hundred multiplications; no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.config.stages import layers_of_stages
from megatron_ultralong.model.loss_options import LossOptions, chunk_rows
from megatron_ultralong.planning.flops import ModelShape, peak_flops, step_flops
from megatron_ultralong.planning.hardware_profile import HardwareProfile
from megatron_ultralong.planning.launches import CHUNK, STEP, launches_of_a_layer
from megatron_ultralong.planning.layer_time import LayerTime, RankWork, Seconds
from megatron_ultralong.planning.lean_time import LeanWork
from megatron_ultralong.planning.memory import StepMemory, predict
from megatron_ultralong.planning.messages import Groups, Kind


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Of one optimizer step.

    Attributes:
        parts: seconds by part, on the stage that bounds the pipeline; they add up to the total.
        flops: operations that the model needs (planning/flops.py), of the whole job.
        tokens: of the whole job.
        ranks: of the job.
        peak: operations a second that a rank's data sheet promises, or None.
    """

    parts: dict[str, float]
    flops: int
    tokens: int
    ranks: int
    peak: float | None

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        """Of the whole job."""
        return self.tokens / self.total

    @property
    def flops_per_rank(self) -> float:
        """The model's operations a second and rank."""
        return self.flops / self.ranks / self.total

    @property
    def mfu(self) -> float | None:
        """Share of the peak, or None."""
        return self.flops_per_rank / self.peak if self.peak else None


def stages_of(config: RunConfig) -> list[int]:
    """Pipeline stages of which at least one is the worst in memory or time: the first two and the last."""
    return sorted({0, min(1, config.parallel.pipeline - 1), config.parallel.pipeline - 1})


def step_time(
    config: RunConfig,
    hf_config: dict[str, Any],
    world_size: int,
    profile: HardwareProfile,
    memories: Sequence[StepMemory] | None = None,
    document: float | None = None,
) -> StepTime:
    """Time of a step.

    Args:
        config: the run, whose rules `config.checks` has found kept.
        hf_config: the model's config.json.
        world_size: ranks of the job.
        profile: the machine.
        memories: of `stages_of`, where the caller has them.
        document: mean length of documents that attention is confined to; None: it is not, or they are samples. Of
            several sources it is that of those which isolate documents: the time is the mean over them by weight.
    """
    masks, weights = config.data.masks, [source.weight for source in config.data.sources]
    if len(set(masks)) == 1:
        return _step_time(config, hf_config, world_size, profile, memories, document)
    share = sum(weight for weight, masked in zip(weights, masks, strict=True) if masked) / sum(weights)
    whole = _step_time(config, hf_config, world_size, profile, memories, None)
    apart = _step_time(config, hf_config, world_size, profile, memories, document)
    parts = {
        part: (1 - share) * whole.parts.get(part, 0.0) + share * apart.parts.get(part, 0.0)
        for part in whole.parts | apart.parts
    }
    flops = round((1 - share) * whole.flops + share * apart.flops)
    return dataclasses.replace(whole, parts=parts, flops=flops)


def _step_time(
    config: RunConfig,
    hf_config: dict[str, Any],
    world_size: int,
    profile: HardwareProfile,
    memories: Sequence[StepMemory] | None,
    document: float | None,
) -> StepTime:
    """Of a step whose samples are all alike."""
    parallel, train = config.parallel, config.train
    shape = ModelShape.from_hf(hf_config)
    groups = Groups.of(world_size, parallel.tensor, parallel.context, parallel.ulysses, parallel.pipeline)
    work = (LeanWork if parallel.head_groups else RankWork)(shape, config, groups, profile, document)
    stages = stages_of(config)
    memories = memories or [predict(config, hf_config, world_size, s, profile.asynchronous) for s in stages]
    model_ranks = parallel.tensor * parallel.context * parallel.pipeline
    microbatches = train.global_batch_size // (train.micro_batch_size * (world_size // model_ranks))
    layer, counts = work.layer(), layers_of_stages(parallel, shape.layers)
    passes = {s: _microbatch(work, layer, counts[s], s == parallel.pipeline - 1) for s in stages}
    slowest = max(passes, key=lambda s: passes[s].total)
    parts = Seconds({part: microbatches * seconds for part, seconds in passes[slowest].items()})
    if parallel.pipeline > 1:
        middle = max(0, parallel.pipeline - 3) * passes[stages[1]].total  # the others are like the second
        once = sum(each.total for each in passes.values()) + middle
        parts["pipeline bubble"] = once - passes[slowest].total
    parameters = [memory.weights / work.element for memory in memories]
    parts.add(_end_of_step(work, max(parameters), passes[slowest]))
    length = config.padded_length
    samples, visible = train.global_batch_size, min(work.document, length)
    flops = step_flops(shape, samples * length, samples * length, int(samples * length * (visible + 1) / 2))
    found = {part: seconds for part, seconds in parts.items() if seconds > 0}
    return StepTime(found, flops, samples * config.data.sequence_length, world_size, peak_flops(profile.name))


def forward_seconds(
    config: RunConfig, hf_config: dict[str, Any], world_size: int, profile: HardwareProfile, length: float
) -> float:
    """Of one sample of `length` tokens through all layers of one replica, as evaluation reads a prompt."""
    parallel = config.parallel
    groups = Groups.of(world_size, parallel.tensor, parallel.context, parallel.ulysses, parallel.pipeline)
    parts = 2 * parallel.context * parallel.tensor
    shorter = dataclasses.replace(config.data, sequence_length=max(1, round(length / parts)) * parts)
    train = dataclasses.replace(config.train, micro_batch_size=1)
    one = dataclasses.replace(config, data=shorter, train=train)
    shape = ModelShape.from_hf(hf_config)
    return shape.layers * RankWork(shape, one, groups, profile).layer().forward.total


def _microbatch(work: RankWork, layer: LayerTime, layers: int, last: bool) -> Seconds:
    """Forward and backward of a stage's layers, and of the head on the last."""
    parallel, profile = work.config.parallel, work.profile
    found: Seconds = Seconds()
    for side in (layer.forward, layer.backward):
        found.add(side, layers)
    again = parallel.recompute_layers or layers
    found["recomputation"] = min(again, layers) * layer.again.total
    launches = launches_of_a_layer(parallel, work.tiles).total * layers
    if last:
        found.add(_head(work))
        launches += CHUNK * _chunks(work)
    if parallel.offload and profile.asynchronous:
        found["offload"] = layers * _offload(work, layer)
    if parallel.pipeline > 1:
        payload = work.split * work.shape.hidden * work.element
        found["pipeline messages"] = 2 * work.message("send", payload, work.groups.pipeline)
    if profile.asynchronous:  # the process may be slower than its device
        found["launches"] = max(0.0, launches * (profile.launch or 0.0) - found.total)
    return found


def _offload(work: RankWork, layer: LayerTime) -> float:
    """What of a layer input's way to the host and back outlasts the layer's work."""
    copied = work.split * work.shape.hidden * work.element / (work.profile.host_link or 1.0)
    if work.config.parallel.head_groups and work.config.parallel.recompute == "selective":
        copied += work.tokens * work.heads * work.shape.head_dim * work.element / (work.profile.host_link or 1.0)
    return sum(max(0.0, copied - way) for way in (layer.forward.total, layer.backward.total + layer.again.total))


def _chunks(work: RankWork) -> int:
    """Pieces that the loss is computed in."""
    parallel = work.config.parallel
    ranks = parallel.tensor if parallel.sequence_parallel else 1
    vocabulary = -(-work.shape.vocabulary // parallel.tensor)
    rows = chunk_rows(LossOptions(chunk=work.config.train.loss_chunk), vocabulary, ranks) * ranks
    return -(-work.tokens // max(1, rows))


def _head(work: RankWork) -> Seconds:
    """Three products of the head, the softmax's passes over logits in fp32, and gathering hidden states for them."""
    D, e, parallel = work.shape.hidden, work.element, work.config.parallel
    vocabulary = -(-work.shape.vocabulary // parallel.tensor)
    logits, chunks = work.tokens * vocabulary, _chunks(work)
    found = Seconds({"head and loss": 3 * work.product(work.tokens, D, vocabulary)})
    passes = 3 * (e + 4) + 4 * 4 if work.profile.asynchronous else 12 * 4
    found.plus("head and loss", work.moved(logits, passes, 8 * logits / chunks))
    found.plus("head and loss", logits * (work.profile.exponential or 0.0))
    found.plus("head and loss", chunks * work.moved(vocabulary * D, 8 + e))  # its gradient, added chunk by chunk
    if parallel.tensor > 1:
        kinds: tuple[Kind, ...] = ("all_gather", "reduce_scatter") if parallel.sequence_parallel else ("all_reduce",)
        payload = work.tokens * D * e
        found["tensor-parallel messages"] = sum(work.message(kind, payload, work.groups.tensor) for kind in kinds)
    found.add(work.launching(CHUNK * chunks))
    return found


def _end_of_step(work: RankWork, parameters: float, microbatch: Seconds) -> Seconds:
    """Gradients over DP x CP and updated weights back, as far as compute does not hide them, and Adam."""
    parallel, train, group = work.config.parallel, work.config.train, work.groups.replicas
    wide = 4 if train.grad_reduce_in_fp32 else work.element
    compute = microbatch.total
    found: Seconds = Seconds()
    if parallel.distributed_optimizer:
        scatter = work.message("reduce_scatter", parameters * wide, group)
        gather = work.message("all_gather", parameters * work.element, group)
        found["gradient messages"] = work.hidden_behind(scatter, 0.6 * compute if parallel.overlap_grad_reduce else 0.0)
        hidden = 0.3 * compute if parallel.overlap_param_gather else 0.0
        found["weight messages"] = work.hidden_behind(gather, hidden)
    else:
        reduce = work.message("all_reduce", parameters * wide, group)
        found["gradient messages"] = work.hidden_behind(reduce, 0.6 * compute if parallel.overlap_grad_reduce else 0.0)
    own = parameters / (group.size if parallel.distributed_optimizer else 1)
    share = work.config.optimizer.offload_fraction
    state = 6 * 4 + 4 + (work.element if work.element == 2 else 0)
    found["optimizer"] = work.moved((1 - share) * own, state) + work.moved(parameters, 2 * wide + wide)
    if share:
        found["optimizer on the host"] = _on_host(work, share * own, wide)
    found.add(work.launching(STEP))
    return found


def _on_host(work: RankWork, elements: float, wide: int) -> float:
    """Adam there (engine/host_adam.py), piece by piece beside the copies each way: the slowest of the three.

    Host memory's bytes an element: three times fp32 read and written; the gradient as it arrives, widened from bf16,
    scaled, read; the weights narrowed to bf16 and read again to leave. fp32 weights arrive, are stepped and leave.
    """
    profile, e = work.profile, work.element
    down = wide + (e if e == 4 else 0)
    gradient = (wide + 4 if wide == 2 else 0) + 2 * 4 + 4
    moved = 3 * 2 * 4 + down + gradient + (4 + 2 * e if e == 2 else e)
    return elements * max(moved / (profile.host_copy or 1.0), max(down, e) / (profile.host_link or 1.0))
