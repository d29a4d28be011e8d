"""What a kind of machine does, on disk: rates that plans of time and memory start from, each with its source.

One JSON file a kind of machine. Those in `profiles/` are from data sheets and published measurements;
`tools/calibrate.py` and `tools/gpu_check.py` write the same format from what they measured on the machine at hand, and
what these do not measure is filled in from the profile that `like` names. No torch, no processes.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json, write_json

FORMAT = 2
PROFILES = Path(__file__).parent / "profiles"
_MEND = "write it anew with tools/calibrate.py or tools/gpu_check.py"

Kind = Literal["data sheet", "measured", "published", "assumed"]
Precision = Literal["bf16", "fp32"]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a figure comes from.

    Attributes:
        kind: "data sheet": the vendor's; "measured": by this project's tools on such a machine; "published": measured
            by others; "assumed": a guess, with its reason.
        text: which, in a few words or a link.
    """

    kind: Kind
    text: str


@dataclasses.dataclass(frozen=True)
class MatmulRate:
    """Of products of very many rows.

    Attributes:
        width: of the matrix they are multiplied by: the geometric mean of its two sides.
        rate: operations a second, two a multiply-add.
    """

    width: float
    rate: float


@dataclasses.dataclass(frozen=True)
class AttentionRate:
    """Of the fastest kernel on one causal block.

    Attributes:
        tokens: the block's length.
        forward: operations a second, at four a pair of a query and a key, a head and a channel.
        backward: operations a second, at ten.
    """

    tokens: float
    forward: float
    backward: float


@dataclasses.dataclass(frozen=True)
class CopyRate:
    """Of elementwise operators, memory-bound.

    Attributes:
        size: bytes that are read and written, added.
        rate: such bytes a second.
    """

    size: float
    rate: float


@dataclasses.dataclass(frozen=True)
class LinkRate:
    """Of one process's messages.

    Attributes:
        scope: "domain": between neighbours on NVLink or within a machine; "network": between those.
        kind: which message, or "any".
        rate: bytes a second that a process sends (and receives at the same time).
        latency: seconds of an empty one, a step of it: a ring of n has n - 1.
    """

    scope: Literal["domain", "network"]
    kind: Literal["any", "send", "all_gather", "reduce_scatter", "all_reduce", "all_to_all"]
    rate: float
    latency: float


@dataclasses.dataclass(frozen=True)
class HardwareProfile:
    """One kind of GPU in its usual machine, or one core of a kind of CPU.

    Attributes:
        name: as PyTorch calls it, or a data sheet does.
        precision: of the products and attention measured.
        memory: bytes, of one device.
        matmul: rates, the narrowest first.
        attention: rates, the shortest block first.
        copy: rates, the smallest first; one entry is for all sizes.
        exponential: seconds an element of an exponential or its like, beyond moving it; 0 on a GPU.
        launch: seconds of a process to launch one operator.
        asynchronous: the device works while the process launches on.
        domain: processes whose messages do not cross the network.
        links: rates of messages; may be empty where a profile was measured by a single process.
        host_link: bytes a second between a device and its host, each way, while all devices of a machine use it.
        host_copy: bytes a second of the host's memory that one device's share of cores moves.
        sources: by the names above.
        like: a profile of `profiles/` that fills in what is None or empty here.
        commit: of this repository when it was measured, or None.
        date: of the measurement or of reading the sources, YYYY-MM-DD.
    """

    name: str
    precision: Precision
    memory: int
    matmul: tuple[MatmulRate, ...]
    attention: tuple[AttentionRate, ...]
    copy: tuple[CopyRate, ...]
    commit: str | None
    date: str
    exponential: float | None = None
    launch: float | None = None
    asynchronous: bool = True
    domain: int | None = None
    links: tuple[LinkRate, ...] = ()
    host_link: float | None = None
    host_copy: float | None = None
    sources: dict[str, Source] = dataclasses.field(default_factory=dict)
    like: str | None = None

    def write(self, path: Path) -> None:
        """To a JSON file."""
        write_json(path, {"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> HardwareProfile:
        """From a file that `write` made, filled in from the profile that it is `like`.

        Raises:
            UserError: it is missing, of another format, or an entry is missing, unknown or of another type.
        """
        value = read_json(path, "the hardware profile", _MEND)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path}: the hardware profile is not of format {FORMAT}; {_MEND}.")
        entries = {key: entry for key, entry in value.items() if key != "format"}
        try:
            for name, kind in _LISTS.items():
                entries[name] = tuple(kind(**one) for one in entries.get(name, ()))
            entries["sources"] = {name: Source(**one) for name, one in entries.get("sources", {}).items()}
            found = cls(**entries)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: an entry of the hardware profile is missing or unknown ({error}); {_MEND}."
            ) from None
        found._check(path)
        return found._completed(path)

    def _check(self, path: Path) -> None:
        for name, number in self._numbers():
            may_be_zero = name in ("exponential", "links.latency")
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or not number >= (0 if may_be_zero else 1e-12)
            ):
                least = "no number of at least 0" if may_be_zero else "no positive number"
                raise UserError(f"{path}: {name} of the hardware profile is {number!r}, and {least}; {_MEND}.")
        choices: dict[str, tuple[str, tuple[str, ...]]] = {"precision": (self.precision, get_args(Precision))}
        choices |= {f"sources.{name}": (source.kind, get_args(Kind)) for name, source in self.sources.items()}
        for name, (value, known) in choices.items():
            if value not in known:
                raise UserError(f"{path}: {name} of the hardware profile is {value!r}; give one of {', '.join(known)}.")
        if not (self.matmul and self.attention and self.copy):
            raise UserError(f"{path}: the hardware profile has no rate of matmul, attention or copy; {_MEND}.")

    def _numbers(self) -> Iterator[tuple[str, Any]]:
        for name in ("memory", "exponential", "launch", "domain", "host_link", "host_copy"):
            if name == "memory" or getattr(self, name) is not None:
                yield name, getattr(self, name)
        for name in _LISTS:
            for rate in getattr(self, name):
                for field, number in dataclasses.asdict(rate).items():
                    if field not in ("scope", "kind"):
                        yield f"{name}.{field}", number

    def _completed(self, path: Path) -> HardwareProfile:
        """With what is left out from the profile that it is like; `find` refuses what is then still missing."""
        if self.like is None:
            return self
        if self.like not in known():
            raise UserError(f'{path}: like is "{self.like}"; {_nearest(self.like)}')
        other = HardwareProfile.read(PROFILES / f"{self.like}.json")
        missing = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) in (None, ()) and field.name not in ("commit", "like")
        ]
        taken = {name: getattr(other, name) for name in missing}
        sources = {name: other.sources[name] for name in missing if name in other.sources}
        return dataclasses.replace(self, **taken, sources={**sources, **self.sources})


_LISTS: dict[str, Any] = {"matmul": MatmulRate, "attention": AttentionRate, "copy": CopyRate, "links": LinkRate}
_NEEDED = ("exponential", "launch", "domain", "links", "host_link", "host_copy")


def known() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(path.stem for path in PROFILES.glob("*.json"))


def find(name: str) -> HardwareProfile:
    """A profile by its name (h100; case does not matter) or by the path of a JSON file.

    Raises:
        UserError: there is none, with the nearest; or it lacks what a plan needs.
    """
    path = Path(name)
    if name.lower() in known():
        path = PROFILES / f"{name.lower()}.json"
    elif path.suffix != ".json":
        raise UserError(f'--hardware is "{name}"; {_nearest(name)}')
    found = HardwareProfile.read(path)
    missing = [field for field in _NEEDED if getattr(found, field) in (None, ())]
    if missing:
        raise UserError(
            f"{path}: the hardware profile says nothing of {', '.join(missing)}; name in its entry like a profile that "
            f"does ({', '.join(known())})."
        )
    return found


def like_device(name: str, memory: int) -> str | None:
    """The profile of this project that is of a device which PyTorch calls so, or None: that with the nearest memory."""
    profiles = {stem: HardwareProfile.read(PROFILES / f"{stem}.json") for stem in known()}
    fitting = {stem: found for stem, found in profiles.items() if stem.split("-")[0] in name.lower()}
    longest = max((len(stem.split("-")[0]) for stem in fitting), default=0)  # gb200 before b200
    fitting = {stem: found for stem, found in fitting.items() if len(stem.split("-")[0]) == longest}
    return min(fitting, key=lambda stem: abs(fitting[stem].memory - memory), default=None)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), known(), n=1, cutoff=0.4)
    guess = f"the nearest is {near[0]}" if near else "none is near"
    return f"{guess}; give one of {', '.join(known())}, or the path of a profile (.json)."


def interpolated(at: float, places: Sequence[float], values: Sequence[float]) -> float:
    """A value between its neighbours, on a straight line over the logarithms of both; beyond the ends, the ends'."""
    if at <= places[0]:
        return values[0]
    for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
        if at <= right:
            return float(low * (high / low) ** (math.log(at / left) / math.log(right / left)))
    return values[-1]
