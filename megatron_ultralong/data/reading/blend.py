"""Several packed datasets as one endless sequence of samples, in given proportions.

Sample k depends on the weights, the sizes, the seed and where the blend began alone, so every rank computes it by
itself, whatever their number. After any number of samples each source's share is as near its weight as can be (the
rule of megatron-core's blend: the source furthest below its share is next). A source is shuffled anew every epoch.
Samples may also be drawn several at a time from one source, as many as an optimizer step takes: shares are of the steps
then.

A `Position` says how many samples of each source were drawn. It is part of a checkpoint, so that a run that goes on
with other weights, or more or fewer sources, neither repeats nor loses samples of any: new weights count from there.
A source is known by its index's fingerprint, wherever it lies. An index that was packed anew where an old one was read
is another source, which nobody meant to begin with: it is refused, unless that is asked for by its word.

Cost: a permutation of 8 bytes a sample for each source in use; going forwards, a few nanoseconds a sample; a blend
that begins at a position begins there at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.packing import _packing
from megatron_ultralong.data.reading.dataset import PackedDataset, Sample, Spans
from megatron_ultralong.data.shuffle import key
from megatron_ultralong.errors import UserError

_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class SourcePosition:
    """How far one source has been read."""

    fingerprint: str
    """Of its packed index."""
    folder: str
    """Where that lay, for people."""
    weight: float
    """Its share of the samples; 0 for a source that is no longer in the blend."""
    drawn: int
    """Samples drawn from it in all."""
    drawn_before: int
    """Of them, before the present weights."""


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a blend has been read: everything that its next samples depend on, besides its sources and seed."""

    samples: int
    """Samples drawn in all: the next is sample number `samples`."""
    sources: tuple[SourcePosition, ...]
    """Every source that ever was in the blend; a source's place in this list is part of its shuffles' seeds."""
    together: int = 1
    """Samples that are drawn from a source at a time."""

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Position:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError: an entry is missing or unknown.
        """
        sources = tuple(SourcePosition(**source) for source in value["sources"])
        return cls(int(value["samples"]), sources, int(value.get("together", 1)))


class BlendedDataset:
    """An endless blend.

    Args:
        datasets: the sources.
        weights: share of each, relative to the others'.
        seed: of the shuffles.
        start: where to begin, from a checkpoint; None: at the beginning.
        repacked: what to do with an index that was packed anew since, see `data.repacked`.
        together: samples that are drawn from a source at a time, from the first on; weights are shares of these draws.

    Raises:
        UserError: no sources, one of them twice, a weight that is not positive, sources of different lengths or
            tokenizers, or one that was packed anew.
    """

    def __init__(
        self,
        datasets: Sequence[PackedDataset],
        weights: Sequence[float],
        seed: int,
        start: Position | None = None,
        repacked: Literal["refuse", "restart"] = "refuse",
        together: int = 1,
    ) -> None:
        _check(datasets, weights)
        self.changes: list[str] = []
        """A sentence for each source that comes, goes or begins anew where the blend begins, not at its beginning."""
        self.datasets = list(datasets)
        self.weights = [weight / sum(weights) for weight in weights]
        self.sequence_length = datasets[0].sequence_length
        self.together = together
        self._seed = seed
        self._shuffles: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}
        self._start = self._begin(Position(0, ()) if start is None else start, repacked)
        self.first = self._start.samples
        """The first sample that can be located."""
        self._block = 0  # the number of the first choice at hand, counted from `first`
        self._before = self._after = [0] * len(datasets)  # draws from each source before and after them
        self._choices = np.zeros(0, dtype=np.int32)
        self._seek(self.first)

    def _begin(self, start: Position, repacked: str) -> Position:
        """The position with the sources of this blend in it; their shares count anew unless all is as it was."""
        weights = {dataset.fingerprint: w for dataset, w in zip(self.datasets, self.weights, strict=True)}
        same = {source.fingerprint: source.weight for source in start.sources if source.weight} == weights
        same = same and start.together == self.together
        known = {source.fingerprint for source in start.sources}
        sources = [
            dataclasses.replace(
                source,
                weight=weights.get(source.fingerprint, 0.0),
                drawn_before=source.drawn_before if same else source.drawn,
            )
            for source in start.sources
        ]
        for dataset in self.datasets:
            if dataset.fingerprint not in known:
                folder = str(dataset.index.folder)
                sources.append(SourcePosition(dataset.fingerprint, folder, weights[dataset.fingerprint], 0, 0))
                self._say_new(dataset, start, repacked)
        here = {os.path.realpath(dataset.index.folder) for dataset in self.datasets}
        for source in start.sources:
            gone = source.fingerprint not in weights and os.path.realpath(source.folder) not in here
            if gone and source.weight and source.drawn:
                self.changes.append(f"{source.folder}: is read no more, after {source.drawn:,} of its samples.")
        numbers = {source.fingerprint: number for number, source in enumerate(sources)}
        self._numbers = [numbers[dataset.fingerprint] for dataset in self.datasets]
        return Position(start.samples, tuple(sources), self.together)

    def _say_new(self, dataset: PackedDataset, start: Position, repacked: str) -> None:
        """Note a source that was not read before; refuse one that only its folder makes known."""
        folder = dataset.index.folder
        there = [source for source in start.sources if os.path.realpath(source.folder) == os.path.realpath(folder)]
        if there and there[-1].drawn:
            found, read = dataset.fingerprint[:12], there[-1]
            if repacked != "restart":
                raise UserError(
                    f"{folder}: holds the index {found}, but this run has read {read.drawn:,} samples of the index "
                    f"{read.fingerprint[:12]} there, and of a new one it would begin with the first; bring the old one "
                    'back, or set data.repacked to "restart" to read the new one from its beginning.'
                )
            self.changes.append(
                f"{folder}: was packed anew after {read.drawn:,} samples, and is read from its beginning."
            )
        elif start.samples:
            self.changes.append(f"{folder}: is new to this run, and read from its beginning.")

    def locate(self, k: int) -> tuple[int, int]:
        """The source of sample k, k >= `first`, and the index of the sample in that source."""
        if k < self.first:
            raise IndexError(f"sample {k} of a blend that begins at {self.first}")
        self._seek(k)
        source = int(self._choices[self._draw(k) - self._block])
        drawn = self._drawn_at(k)[source]
        epoch, within = divmod(drawn, len(self.datasets[source]))
        return source, int(self._shuffle(source, epoch)[within])

    def read(self, k: int, spans: Spans | None = None) -> Sample:
        """Sample k, or the parts of it in `spans` (see `PackedDataset.read`)."""
        source, i = self.locate(k)
        return dataclasses.replace(self.datasets[source].read(i, spans), source=source)

    def drawn(self, k: int) -> list[int]:
        """Samples of each source before sample k, k >= `first`, those before the blend began included."""
        self._seek(k)
        return self._drawn_at(k)

    def position(self, k: int) -> Position:
        """The position before sample k, k >= `first`: for a checkpoint of a run that has read all before it."""
        sources = list(self._start.sources)
        for number, drawn in zip(self._numbers, self.drawn(k), strict=True):
            sources[number] = dataclasses.replace(sources[number], drawn=drawn)
        return Position(k, tuple(sources), self.together)

    def _draw(self, k: int) -> int:
        """Which draw sample k is part of, counted from `first`."""
        return (k - self.first) // self.together

    def _drawn_at(self, k: int) -> list[int]:
        """Samples drawn from each source in all, before sample k of the block at hand."""
        draw, within = divmod(k - self.first, self.together)
        here = np.bincount(self._choices[: draw - self._block], minlength=len(self.datasets)).tolist()
        before = [self._start.sources[number].drawn_before for number in self._numbers]
        found = [old + self.together * sum(draws) for old, *draws in zip(before, self._before, here, strict=True)]
        found[self._choices[draw - self._block]] += within
        return found

    def _seek(self, k: int) -> None:
        """Make the choices around sample k the ones at hand."""
        draw = self._draw(k)
        if not len(self._choices) or draw < self._block:
            self._block = 0
            self._after = [self._since(number) for number in self._numbers]
            self._next_block()
        while draw >= self._block + len(self._choices):
            self._block += len(self._choices)
            self._next_block()

    def _since(self, number: int) -> int:
        """Draws from a source with the present weights, before this blend began."""
        return (self._start.sources[number].drawn - self._start.sources[number].drawn_before) // self.together

    def _next_block(self) -> None:
        self._before = self._after
        self._choices, self._after = _packing.blend(self.weights, self._before, _BLOCK)

    def _shuffle(self, source: int, epoch: int) -> npt.NDArray[np.int64]:
        known = self._shuffles.get(source)
        if known is None or known[0] != epoch:
            number = self._numbers[source]
            order = _packing.permutation(len(self.datasets[source]), key(self._seed, "epoch", number, epoch))
            self._shuffles[source] = known = (epoch, order)
        return known[1]


def _check(datasets: Sequence[PackedDataset], weights: Sequence[float]) -> None:
    if not datasets or len(datasets) != len(weights):
        raise UserError(f"data.sources: {len(datasets)} sources with {len(weights)} weights cannot be blended.")
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise UserError(f"data.sources.weight: {weight} is no share; give a positive number.")
    folders: dict[str, Any] = {}
    for dataset in datasets:
        if dataset.fingerprint in folders:
            raise UserError(
                f"data.sources: {dataset.index.folder} is the same packed index as {folders[dataset.fingerprint]}; "
                "list it once, with the sum of the weights."
            )
        folders[dataset.fingerprint] = dataset.index.folder
    lengths = sorted({dataset.sequence_length for dataset in datasets})
    if len(lengths) > 1:
        raise UserError(f"data.sources: are packed for different lengths {lengths}; pack them for one.")
    if len({dataset.tokenizer_fingerprint for dataset in datasets}) > 1:
        raise UserError("data.sources: were tokenized by different tokenizers; tokenize them with one.")
