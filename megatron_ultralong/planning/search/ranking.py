"""The layouts that fit, fastest first, and why the others do not; the longest sequence; the fewest GPUs."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.planning.hardware_profile import HardwareProfile
from megatron_ultralong.planning.memory import PlannedMemory, predict
from megatron_ultralong.planning.search.layouts import SAVINGS, layouts, leaner, problem, with_saving
from megatron_ultralong.planning.step_time import StepTime, stages_of, step_time
from megatron_ultralong.rope.recipes import LONGEST

MARGIN = 0.05
"""Share of a device's memory that a plan leaves free, beside the memory model's own margin: what it forgot."""
STEP_OF_LENGTHS = 131_072
"""Tokens between two lengths that are tried for the longest."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One layout that fits.

    Attributes:
        config: the run under it.
        world_size: ranks.
        memory: of the stage that needs most.
        stage: which that is.
        time: of a step.
    """

    config: RunConfig
    world_size: int
    memory: PlannedMemory
    stage: int
    time: StepTime


@dataclasses.dataclass
class Ranking:
    """What became of all layouts.

    Attributes:
        plans: those that fit, fastest first.
        refused: layouts by the reason why the configuration's rules refuse them.
        too_large: layouts that no way of keeping activations makes fit, with the bytes of the leanest.
        considered: configurations looked at.
    """

    plans: list[Plan] = dataclasses.field(default_factory=list)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    too_large: list[tuple[int, RunConfig]] = dataclasses.field(default_factory=list)
    considered: int = 0


def memories(config: RunConfig, hf_config: dict[str, Any], world_size: int, gpu: bool) -> list[PlannedMemory]:
    """Of `stages_of`."""
    return [predict(config, hf_config, world_size, stage, gpu) for stage in stages_of(config)]


def planned(
    config: RunConfig,
    hf_config: dict[str, Any],
    world_size: int,
    profile: HardwareProfile,
    document: float | None = None,
) -> Plan:
    """Memory and time of one configuration, whether it fits or not."""
    found = memories(config, hf_config, world_size, profile.asynchronous)
    worst = max(range(len(found)), key=lambda place: found[place].needed)
    time = step_time(config, hf_config, world_size, profile, found, document)
    return Plan(config, world_size, found[worst], stages_of(config)[worst], time)


def room(profile: HardwareProfile, margin: float = MARGIN) -> float:
    """Bytes that a plan may fill."""
    return profile.memory * (1 - margin)


def rank(
    base: RunConfig,
    hf_config: dict[str, Any],
    world_size: int,
    profile: HardwareProfile,
    *,
    margin: float = MARGIN,
    document: float | None = None,
) -> Ranking:
    """Look at every layout.

    Args:
        base: the run; its layout, recomputation and microbatch are what is searched.
        hf_config: the model's config.json.
        world_size: ranks.
        profile: the machine.
        margin: share of the memory to leave free.
        document: mean length of documents that attention is confined to; None: it is not.
    """
    found, most = Ranking(), room(profile, margin)
    for layout in layouts(base, hf_config, world_size):
        why = problem(layout, hf_config, world_size)
        if why is not None:
            found.refused[_rule(why)] += 1
            found.considered += 1
            continue
        least: tuple[int, RunConfig] | None = None
        for config, further in _ways(layout, hf_config, world_size, profile):
            if further and least is not None and least[0] <= most:
                break
            found.considered += 1
            held = memories(config, hf_config, world_size, profile.asynchronous)
            highest = max(held, key=lambda one: one.needed)
            if least is None or highest.needed < least[0]:
                least = highest.needed, config
            if highest.needed <= most:
                time = step_time(config, hf_config, world_size, profile, held, document)
                stage = stages_of(config)[held.index(highest)]
                found.plans.append(Plan(config, world_size, highest, stage, time))
        if least is not None and least[0] > most:
            found.too_large.append(least)
    found.plans.sort(key=lambda plan: (plan.time.total, plan.memory.needed))
    found.too_large.sort(key=lambda pair: pair[0])
    return found


def _ways(
    layout: RunConfig, hf_config: dict[str, Any], world_size: int, profile: HardwareProfile
) -> Iterator[tuple[RunConfig, bool]]:
    """Ways of keeping activations, and whether one is only for where none before it fits."""
    for saving in SAVINGS:
        yield with_saving(layout, saving), False
    if not profile.asynchronous or layout.train.micro_batch_size > 1:
        return
    for saving in leaner(layout, hf_config):
        config = with_saving(layout, saving)
        if problem(config, hf_config, world_size) is None:
            yield config, True


def _rule(sentence: str) -> str:
    """A reason with n for its numbers, so that equal ones count together; of several the first."""
    first = sentence.splitlines()[1].strip() if "\n" in sentence else sentence
    return re.sub(r"\d+(,\d{3})*", "n", first.split(";")[0])


def _fits(base: RunConfig, hf_config: dict[str, Any], world_size: int, profile: HardwareProfile, margin: float) -> bool:
    """Whether any layout does, with everything that saves memory."""
    most = room(profile, margin)
    for layout in layouts(base, hf_config, world_size):
        if layout.train.micro_batch_size > 1:
            continue
        savings = [SAVINGS[-1], *(leaner(layout, hf_config) if profile.asynchronous else ())]
        ways = (with_saving(layout, saving) for saving in (savings[-1], *savings))
        if not _holds(next(ways), hf_config, world_size, profile, most):  # the leanest, allowed or not
            continue
        for config in ways:
            if _holds(config, hf_config, world_size, profile, most) and problem(config, hf_config, world_size) is None:
                return True
    return False


def _holds(
    config: RunConfig, hf_config: dict[str, Any], world_size: int, profile: HardwareProfile, most: float
) -> bool:
    return max(one.needed for one in memories(config, hf_config, world_size, profile.asynchronous)) <= most


def longest(
    at_length: Callable[[int], RunConfig],
    hf_config: dict[str, Any],
    world_size: int,
    profile: HardwareProfile,
    *,
    margin: float = MARGIN,
) -> int | None:
    """The longest sequence, in multiples of 131,072 tokens, that some layout holds; None: not even one such.

    At most 16,777,216, beyond which fp32 positions, as every serving stack has them, are no longer apart.

    Args:
        at_length: the run for a length.
    """

    def fits(multiple: int) -> bool:
        return _fits(at_length(multiple * STEP_OF_LENGTHS), hf_config, world_size, profile, margin)

    if not fits(1):
        return None
    low, high = 1, 2
    most = LONGEST // STEP_OF_LENGTHS
    while high <= most and fits(high):
        low, high = high, 2 * high
    if high > most and low == most:
        return LONGEST
    high = min(high, most + 1)
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * STEP_OF_LENGTHS


def cluster_sizes(domain: int, most: int = 16_384) -> Iterator[int]:
    """Powers of two, and from a whole machine on also one and a half times each."""
    size = 1
    while size <= most:
        yield size
        if size >= domain and size % 2 == 0:
            yield size * 3 // 2
        size *= 2


def fewest(
    base: RunConfig,
    hf_config: dict[str, Any],
    profile: HardwareProfile,
    *,
    margin: float = MARGIN,
) -> int | None:
    """The fewest ranks on which some layout holds the run; None: not even 16,384."""
    sizes = cluster_sizes(profile.domain or 1)
    return next((size for size in sizes if _fits(base, hf_config, size, profile, margin)), None)
