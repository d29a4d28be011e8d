"""Which ranks of a job differ, and the rehearsal of all of them: the others do what one of these does."""

from __future__ import annotations

import dataclasses
import logging
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.config.checks import check_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.rehearsal.rehearse import GPU, Rehearsal, rehearse
from megatron_ultralong.rehearsal.shallow import LeftOut, left_out, shallow

logger = logging.getLogger(__name__)


def differing_ranks(config: RunConfig, world_size: int) -> dict[int, str]:
    """Ranks whose steps differ in memory or messages, and what they stand for.

    First, second and last pipeline stage (embedding, none of both, head), first and last context-parallel rank. Ranks
    of a tensor-parallel group do the same, and so do those of a data-parallel one, but for the optimizer's shares,
    which differ by some rows.
    """
    parallel = config.parallel
    data_parallel = world_size // (parallel.tensor * parallel.context * parallel.pipeline)
    stages = dict.fromkeys((0, min(1, parallel.pipeline - 1), parallel.pipeline - 1))
    found = {}
    for stage in stages:
        for context in dict.fromkeys((0, parallel.context - 1)):
            rank = parallel.tensor * (context + parallel.context * data_parallel * stage)
            names = [_place("pipeline stage", stage, parallel.pipeline), _place("context", context, parallel.context)]
            found[rank] = ", ".join(filter(None, names)) or "every rank"
    return found


def _place(axis: str, place: int, size: int) -> str:
    return f"{axis} {place + 1} of {size}" if size > 1 else ""


@dataclasses.dataclass(frozen=True)
class JobRehearsal:
    """The ranks that were rehearsed.

    Attributes:
        found: in order of rank.
        names: what each stands for.
        layers: of the model, and how many of them were rehearsed.
        left_out: what the others would add, by rank.
    """

    found: tuple[Rehearsal, ...]
    names: dict[int, str]
    layers: tuple[int, int]
    left_out: dict[int, LeftOut]

    @property
    def worst(self) -> Rehearsal:
        """The rank that needs most of its device's memory."""
        return max(self.found, key=self.needed)

    def needed(self, one: Rehearsal) -> int:
        """Bytes of its device's memory that a rank needs, with all layers."""
        return one.peak.bytes + self.left_out[one.rank].device


def rehearse_job(
    config: RunConfig,
    hf_config: dict[str, Any],
    world_size: int,
    ranks: Sequence[int] = (),
    *,
    capability: tuple[int, int] | None = GPU,
    document: int = 0,
    every_microbatch: bool = False,
    layers: int = 0,
) -> JobRehearsal:
    """Rehearse these ranks; none: all that differ. `layers`: of each stage, as `shallow` takes it.

    Raises:
        UserError: the configuration cannot run with so many processes, a rank is none of the job's, or a rank's step
            breaks, with the place where it does.
    """
    check_config(config, hf_config=hf_config, world_size=world_size, inputs=False)
    for rank in ranks:
        if not 0 <= rank < world_size:
            raise UserError(f"--rank {rank} is none of {world_size} processes; give one from 0 to {world_size - 1}.")
    differing = differing_ranks(config, world_size)
    names = {rank: differing.get(rank, f"rank {rank}") for rank in (ranks or differing)}
    whole, cut = (config, completed(hf_config)), shallow(config, hf_config, layers)
    found = tuple(_all(*cut, world_size, names, capability, document, every_microbatch))
    return JobRehearsal(
        found,
        names,
        (whole[1]["num_hidden_layers"], cut[1]["num_hidden_layers"]),
        {one.rank: left_out(whole, cut, world_size, one.coordinates.pipeline, one.gpu) for one in found},
    )


def _all(
    config: RunConfig,
    hf_config: dict[str, Any],
    world_size: int,
    names: dict[int, str],
    capability: tuple[int, int] | None,
    document: int,
    every_microbatch: bool,
) -> Iterator[Rehearsal]:
    for number, (rank, name) in enumerate(names.items(), start=1):
        logger.info("rehearsing rank %d (%s), %d of %d", rank, name, number, len(names))
        try:
            yield rehearse(
                config,
                hf_config,
                world_size,
                rank,
                capability=capability,
                document=document,
                every_microbatch=every_microbatch,
            )
        except UserError:
            raise
        except Exception as error:
            logger.debug("", exc_info=True)
            raise UserError(explained(error, rank, name, world_size)) from error


def explained(error: BaseException, rank: int, name: str, world_size: int) -> str:
    """One sentence: which rank's step broke, where, and on what."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/megatron" in frame.filename and "/rehearsal/" not in frame.filename]
    frame = (ours or frames)[-1]
    place = getattr(error, "place", None)
    where = f" in {place.way} of {place.module} (microbatch {place.microbatch + 1})" if place and place.module else ""
    text = " ".join(str(error).split()) or "no text"
    return (
        f"Rank {rank} of {world_size} ({name}) breaks{where}, at {Path(frame.filename).name} line {frame.lineno} in "
        f"{frame.name}: {type(error).__name__}: {text[:400]}{'...' if len(text) > 400 else ''} (--traceback shows all)."
    )
