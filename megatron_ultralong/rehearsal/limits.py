"""What a device holds, and whether a rehearsed rank fits."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.errors import UserError
from megatron_ultralong.planning import hardware_profile
from megatron_ultralong.rehearsal.differing import JobRehearsal

PROFILES = Path(hardware_profile.__file__).parent / "profiles"
RESERVED = 0.1
"""Share of a GPU's memory that is left for what no tensor shows: the driver, communicators, kernels' own workspaces,
an allocator's fragments."""


def device_memory(text: str) -> int:
    """Bytes of a GPU, by "80" (GB of 10^9 bytes), a profile's name such as "h100", or the path of a profile.

    Raises:
        UserError: none of these.
    """
    try:
        size = float(text)
    except ValueError:
        path = Path(text) if text.endswith(".json") else PROFILES / f"{text.lower()}.json"
        if not path.exists():
            names = ", ".join(sorted(found.stem for found in PROFILES.glob("*.json")))
            raise UserError(
                f'--memory is "{text}"; give GB, such as 80, a profile\'s name{f" ({names})" if names else ""}, or the '
                "path of a profile."
            ) from None
        return hardware_profile.HardwareProfile.read(path).memory
    if not 0 < size < 1e6:
        raise UserError(f"--memory is {text}; give the GB of one GPU, such as 80.")
    return round(size * 1e9)


def check_fits(job: JobRehearsal, memory: int) -> None:
    """Raise if the worst rank needs more than a device of `memory` bytes has for tensors.

    Raises:
        UserError: it does, with by how much and what takes most.
    """
    worst, room = job.worst, round(memory * (1 - RESERVED))
    if job.needed(worst) <= room:
        return
    (state, part), most = next(iter(worst.peak.parts.items()))
    raise UserError(
        f"Rank {worst.rank} ({job.names[worst.rank]}) needs {job.needed(worst) / 1e9:.1f} GB, and of "
        f"{memory / 1e9:.0f} GB a GPU has {room / 1e9:.1f} for tensors (a tenth is left for the driver, communicators "
        f"and fragments); most of it, {most / 1e9:.1f} GB, is {part} ({state}): docs/training.md says what makes "
        "that smaller, such as parallel.recompute, a larger parallel.context or parallel.tensor."
    )
