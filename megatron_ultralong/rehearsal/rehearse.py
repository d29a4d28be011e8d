"""One optimizer step of one rank of any job: the run's own code, on tensors without memory, counted.

Model, megatron-core's DDP, its schedule, the loss and the optimizer are built and stepped by `training`, under a
process group whose other ranks do not exist. `assumptions` says what is taken for granted. Steps of many microbatches
are rehearsed with fewer: once the pipeline is full, one microbatch is as the next, so one's counts stand for those left
out, and the peak is the same. (Left out is the report of each microbatch: 24 bytes, and an operator at the step's end.)
Cost: one to two milliseconds of a core an operator, a few hundred MB.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.engine import adam_state
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.planning.memory import StepMemory
from megatron_ultralong.rehearsal import ledger as ledgers
from megatron_ultralong.rehearsal.assumptions import Samples, assumed, rank_of
from megatron_ultralong.rehearsal.collectives import Message
from megatron_ultralong.rehearsal.following import followed
from megatron_ultralong.rehearsal.grid import Coordinates, coordinates, names_of_groups
from megatron_ultralong.rehearsal.ledger import Ledger, Peak, Timeline
from megatron_ultralong.rehearsal.operators import Operators, faked
from megatron_ultralong.rehearsal.places import OPTIMIZER, Place, Places
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.recipes import scaled
from megatron_ultralong.training.batches import microbatches
from megatron_ultralong.training.measured_memory import measured, standing, storage_of
from megatron_ultralong.training.setup import Run, build_run
from megatron_ultralong.training.step import train_step

GPU = (9, 0)
"""Compute capability of the GPU that is assumed: Hopper's."""


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What one rank's step takes.

    Attributes:
        rank: of the job.
        world_size: its processes.
        coordinates: of the rank.
        gpu: it took a GPU's path, else a CPU's.
        memory: bytes by the parts of a dry run, as that measures them.
        peak: the highest point of the device's memory, by part, and where it is.
        host: bytes in host memory at most: activations, and the optimizer's share there.
        standing: bytes that are there between steps, by part.
        timeline: the device's memory over the step.
        microbatches: of the step, and how many of them were rehearsed.
        operators: launched by part and operator's name, messages left out.
        messages: by kind, group and bytes, how many.
        groups: what the groups' ranks are called, such as "CP" or "TP".
        products: operations of matrix products, by part; recomputation counts.
        attention: operations of attention by direction; four a pair, head and channel forward, ten backward.
        synchronisations: functions that wait for the device, with how often.
        seconds: that rehearsing took.
    """

    rank: int
    world_size: int
    coordinates: Coordinates
    gpu: bool
    memory: StepMemory
    peak: Peak
    host: int
    standing: dict[str, int]
    timeline: Timeline
    microbatches: tuple[int, int]
    operators: dict[str, collections.Counter[str]]
    messages: collections.Counter[Message]
    groups: dict[tuple[int, ...], str]
    products: collections.Counter[str]
    attention: collections.Counter[str]
    synchronisations: collections.Counter[str]
    seconds: float


def rehearse(
    config: RunConfig,
    hf_config: dict[str, Any],
    world_size: int,
    rank: int = 0,
    *,
    capability: tuple[int, int] | None = GPU,
    document: int = 0,
    every_microbatch: bool = False,
) -> Rehearsal:
    """Take the step of `rank` in a job of `world_size` processes, and count.

    Args:
        config: the run, checked (`config.checks.check_config`). Data and checkpoints are not read.
        hf_config: the model's config.json.
        world_size, rank: processes of the job, and which of them.
        capability: compute capability of the GPU whose path is taken; None: a CPU's.
        document: tokens of each document, where document_mask is true (see `of_one_source`); 0: a sample is one.
        every_microbatch: rehearse all, however many.

    Raises:
        UserError: the model or layout is not supported.
        Exception: whatever else the step itself raises, with the place where it was as its `place`.
    """
    started = time.monotonic()
    together = config.train.micro_batch_size * world_size // model_ranks(config)
    count = config.train.global_batch_size // together
    taken = count if every_microbatch else min(count, config.parallel.pipeline + 2)
    step = _Step(world_size, rank, capability)
    step.take(_of_batch(of_one_source(config, document), taken * together), hf_config, document)
    ledger, times = step.ledger, {taken - 2: 1 + count - taken}  # what stands for the microbatches left out
    return Rehearsal(
        rank=rank,
        world_size=world_size,
        coordinates=step.coordinates,
        gpu=capability is not None,
        memory=step.memory,
        peak=ledger.peak(),
        host=ledger.host_top,
        standing=ledger.standing,
        timeline=ledger.timeline,
        microbatches=(count, taken),
        operators=_by_part(step.operators.by_part, times),
        messages=_all(step.operators.messages, times),
        groups=step.groups,
        products=_sums(step.operators.products, times, "part"),
        attention=_sums(step.attention, times, "way"),
        synchronisations=collections.Counter(step.operators.synchronisations),
        seconds=time.monotonic() - started,
    )


def of_one_source(config: RunConfig, document: int) -> RunConfig:
    """The run as it is rehearsed, where some sources isolate documents and others do not: with one of them alone.

    It is one that isolates documents if their length is given, else one that does not.
    """
    data = config.data
    if len(set(data.masks)) == 1:
        return config
    source = data.sources[data.masks.index(document > 0)]
    return dataclasses.replace(config, data=dataclasses.replace(data, sources=(source,)))


def _of_batch(config: RunConfig, samples: int) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch_size=samples))


class _Step:
    """One step and what counts it."""

    def __init__(self, world_size: int, rank: int, capability: tuple[int, int] | None) -> None:
        self.world_size, self.rank, self.capability = world_size, rank, capability
        self.places = Places()
        self.ledger, self.operators = Ledger(self.places), Operators(self.places.now)
        self.attention: collections.Counter[Place] = collections.Counter()

    def take(self, config: RunConfig, hf_config: dict[str, Any], document: int) -> None:
        """Build the run, make what its first step would, and take the step."""
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")
            for context in (
                rank_of(config, self.world_size, self.rank),
                assumed(self.capability is not None),
                faked(self.capability),
                self.operators,
                self.ledger,
                followed(self.places, self.attention, self.capability is not None),
            ):
                stack.enter_context(context)
            self.groups, self.coordinates = names_of_groups(self.world_size), coordinates()
            run = build(config, hf_config, document)
            _stand(run, self.places, self.ledger)
            self.operators.clear()
            self.attention.clear()
            self.places.restart()
            with measured(run, self.ledger) as self.memory, self._placed():
                train_step(run, 0)
                self.ledger.end()

    @contextlib.contextmanager
    def _placed(self) -> Iterator[None]:
        """Have an error say where the step was."""
        try:
            yield
        except Exception as error:
            error.place = self.operators.last  # type: ignore[attr-defined]
            raise


def model_ranks(config: RunConfig) -> int:
    """Processes that hold one copy of the model and a sample."""
    return config.parallel.tensor * config.parallel.context * config.parallel.pipeline


def build(config: RunConfig, hf_config: dict[str, Any], document: int = 0) -> Run:
    """The run on the grid that is laid, with samples that are assumed; of a checkpoint nothing is read."""
    hf_config = completed(hf_config)
    rope = config_json.read(hf_config, config.rope.original_length)
    if config.rope.kind != "keep":  # else what the checkpoint was trained for may be longer than the model's own
        rope = scaled(rope, config.rope, config.data.sequence_length)
    description = Description(hf_config=hf_config, rope=rope, tokenizer_fingerprint="", step=0, run={})
    samples: Any = Samples(config.padded_length, document or config.padded_length)
    return build_run(config, description, samples, torch.device("cpu"))


def _stand(run: Run, places: Places, ledger: Ledger) -> None:
    """Make what the first step makes and later ones find, and name it: Adam's state, the table of positions."""
    places.watch(run.weights)
    for name in ("prepare_grads", "get_grad_norm", "step_with_ready_grads"):
        setattr(run.optimizer, name, places.around(OPTIMIZER, getattr(run.optimizer, name)))
    collections.deque(adam_state.held(run.optimizer), maxlen=0)
    run.weights.rotary_pos_emb(next(microbatches(run, 0)).position_ids)  # type: ignore[operator]
    for part, tensors in standing(run).items():
        ledger.name(ledgers.STANDING, part, [storage_of(tensor) for tensor in tensors])
    ledger.name_rest(ledgers.STANDING)
    ledger.watch(run.weights)


def _all(found: dict[Place, collections.Counter[Any]], times: dict[int, int]) -> collections.Counter[Any]:
    """Over all places, those of a period so many times."""
    total: collections.Counter[Any] = collections.Counter()
    for place, counts in found.items():
        for name, n in counts.items():
            total[name] += n * times.get(place.period, 1)
    return total


def _by_part(
    found: dict[Place, collections.Counter[str]], times: dict[int, int]
) -> dict[str, collections.Counter[str]]:
    parts: dict[str, dict[Place, collections.Counter[str]]] = collections.defaultdict(dict)
    for place, counts in found.items():
        own = {name: n for name, n in counts.items() if not name.startswith("c10d.")}
        parts[place.part][place] = collections.Counter(own)
    return {part: total for part, each in parts.items() if (total := _all(each, times))}


def _sums(found: collections.Counter[Place], times: dict[int, int], by: str) -> collections.Counter[str]:
    total: collections.Counter[str] = collections.Counter()
    for place, n in found.items():
        total[getattr(place, by)] += n * times.get(place.period, 1)
    return total
