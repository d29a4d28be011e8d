"""Every byte of a rank's device by what it is for, at every moment of a rehearsed step.

What is there between steps stays under its own name (weights, gradients, optimizer and so on). What a layer's forward
leaves is kept for backward; all else is at work. Two peaks matter: the device's and, under offload, the host's.
"""

from __future__ import annotations

import collections
import dataclasses
import weakref
from typing import Any

import torch

from megatron_ultralong.rehearsal.operators import asker
from megatron_ultralong.rehearsal.places import REST, Place, Places
from megatron_ultralong.training.measured_memory import Storages

STANDING, KEPT, WORKING = "standing", "kept", "working"
HOST, HOST_ADAM = "host memory", "Adam on the host"
GATHERED, RING, SCHEDULE = "gather buffer of sequence parallelism", "ring buffers", "messages between stages"
PERSISTENT = (GATHERED,)
"""Parts that are made in a step and never freed."""
_DEVICE = torch.ops.prim.device.default


@dataclasses.dataclass
class _Held:
    size: int
    state: str
    part: str


@dataclasses.dataclass(frozen=True)
class Peak:
    """The highest point.

    Attributes:
        bytes: in all.
        parts: bytes by state and part, the largest first; none of 0.
        place: where the step was.
    """

    bytes: int = 0
    parts: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    place: Place | None = None


@dataclasses.dataclass
class Timeline:
    """Memory over the step: what was held after each allocation and release.

    Attributes:
        bytes: in order: in all, of it what is kept for backward, and what stands between steps.
        marks: where each stretch begins: place in `bytes`, way and microbatch.
    """

    bytes: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    marks: list[tuple[int, str, int]] = dataclasses.field(default_factory=list)


class Ledger(Storages):
    """Counts as `Storages` does, and by part."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.held: dict[int, _Held] = {}
        self.by_part: collections.Counter[tuple[str, str]] = collections.Counter()
        self.by_state: collections.Counter[str] = collections.Counter()
        self.host = self.host_top = 0
        self.timeline = Timeline()
        self._peak: tuple[int, dict[tuple[str, str], int], Place | None] = (0, {}, None)
        self.standing: dict[str, int] = {}
        self._fresh: list[int] = []
        self._ended = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # half of what is dispatched, and makes nothing: answered here, as the fake tensor would
            return torch.device("meta") if args[0].fake_mode.in_kernel_invocation else args[0].fake_device
        return super().__torch_dispatch__(func, types, args, kwargs)

    def begin(self) -> None:
        """Count the peak and the timeline from here."""
        self._ended = False
        super().begin()
        self.timeline, self._peak = Timeline(), (0, {}, None)
        self._rise(Place(""))

    def end(self) -> None:
        """The step is over: what is freed from here on is none of its."""
        self.standing = {part: n for (state, part), n in self.by_part.items() if state == STANDING and n}
        self._ended = True

    def peak(self) -> Peak:
        """Of the step since `begin`."""
        most, parts, place = self._peak
        return Peak(most, dict(sorted(((k, n) for k, n in parts.items() if n), key=lambda item: -item[1])), place)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        place = self.places.now()
        self.known.add(key)
        if place.part == HOST:
            self.host += size
            self.host_top = max(self.host_top, self.host)
            weakref.finalize(storage, self._forget_host, key, size)
            return
        part = SCHEDULE if place.part == REST and asker().startswith("p2p_communication") else place.part
        self.held[key] = held = _Held(size, STANDING if part in PERSISTENT else WORKING, part)
        self.by_part[held.state, part] += size
        self.by_state[held.state] += size
        self.now += size
        self.stretch = max(self.stretch, self.now)
        self._fresh.append(key)
        weakref.finalize(storage, self._forget, key, size)
        self._rise(place)

    def _rise(self, place: Place) -> None:
        marks = self.timeline.marks
        if not marks or marks[-1][1:] != (place.way, place.microbatch):
            marks.append((len(self.timeline.bytes), place.way, place.microbatch))
        self._note_event()
        self.top = max(self.top, self.now)
        if self.now > self._peak[0]:
            self._peak = (self.now, dict(self.by_part), place)

    def _forget(self, key: int, size: int) -> None:
        super()._forget(key, size)
        held = self.held.pop(key)
        self.by_part[held.state, held.part] -= size
        self.by_state[held.state] -= size
        self._note_event()

    def _note_event(self) -> None:
        if self._ended:
            return
        self.timeline.bytes.append((self.now, self.by_state[KEPT], self.by_state[STANDING]))

    def _forget_host(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.host -= size

    def keep(self) -> None:
        """A layer's forward is over: what it made and is still there is kept for backward."""
        if torch._C._current_autograd_node() is not None:
            return
        for key in self._fresh:
            if (held := self.held.get(key)) is not None and held.state == WORKING:
                self._name(held, KEPT, held.part)
        self._fresh.clear()

    def name(self, state: str, part: str, keys: list[int]) -> None:
        """Say what these storages are."""
        for key in keys:
            if key in self.held:
                self._name(self.held[key], state, part)

    def name_rest(self, state: str) -> None:
        """Everything that is at work now is of this state, under its own part."""
        for held in self.held.values():
            if held.state == WORKING:
                self._name(held, state, held.part)
        self._fresh.clear()

    def _name(self, held: _Held, state: str, part: str) -> None:
        self.by_part[held.state, held.part] -= held.size
        self.by_state[held.state] -= held.size
        held.state, held.part = state, part
        self.by_part[state, part] += held.size
        self.by_state[state] += held.size

    def watch(self, model: Any) -> None:
        """Note where the layers of `model`, and itself, end."""
        for layer in (*getattr(model.decoder, "layers", ()), model):
            layer.register_forward_hook(lambda *_: self.keep(), always_call=True)
