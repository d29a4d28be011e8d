"""Several packed datasets as one endless sequence of samples, in given proportions.

Sample k depends on the weights, the sizes and the seed alone, so every rank computes it by itself and a run may
begin at any k. After any number of samples each source's share is as near its weight as can be (the rule of
megatron-core's blend: the source furthest below its share is next). A source is shuffled anew every epoch.

Cost: a permutation of 8 bytes a sample for each source in use; going forwards, a few nanoseconds a sample; the
first sample at k replays the k choices before it, about 10 ms a million.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data import _packing
from megatron_ultralong.data.dataset import PackedDataset, Sample, Spans
from megatron_ultralong.data.order import key
from megatron_ultralong.errors import UserError

_BLOCK = 4096


class BlendedDataset:
    """An endless blend.

    Args:
        datasets: the sources.
        weights: share of each, relative to the others'.
        seed: of the shuffles.

    Raises:
        UserError: no sources, a weight that is not positive, or sources of different lengths or tokenizers.
    """

    def __init__(self, datasets: Sequence[PackedDataset], weights: Sequence[float], seed: int) -> None:
        _check(datasets, weights)
        self.datasets = list(datasets)
        self.weights = [weight / sum(weights) for weight in weights]
        self.sequence_length = datasets[0].sequence_length
        self._seed = seed
        self._shuffles: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}
        self._start = 0  # of the block of choices at hand
        self._before = self._after = [0] * len(datasets)  # samples drawn from each source before and after it
        self._choices = np.zeros(0, dtype=np.int32)
        self._next_block()

    def locate(self, k: int) -> tuple[int, int]:
        """The source of sample k, k >= 0, and the index of the sample in that source."""
        if k < 0:
            raise IndexError(f"sample {k}")
        if k < self._start:
            self._after = [0] * len(self.datasets)
            self._next_block()
        while k >= self._start + _BLOCK:
            self._next_block()
        source = int(self._choices[k - self._start])
        drawn = self._before[source] + int(np.count_nonzero(self._choices[: k - self._start] == source))
        epoch, within = divmod(drawn, len(self.datasets[source]))
        return source, int(self._shuffle(source, epoch)[within])

    def read(self, k: int, spans: Spans | None = None) -> Sample:
        """Sample k, or the parts of it in `spans` (see `PackedDataset.read`)."""
        source, i = self.locate(k)
        return self.datasets[source].read(i, spans)

    def _next_block(self) -> None:
        self._start = sum(self._after)
        self._before = self._after
        self._choices, self._after = _packing.blend(self.weights, self._before, _BLOCK)

    def _shuffle(self, source: int, epoch: int) -> npt.NDArray[np.int64]:
        known = self._shuffles.get(source)
        if known is None or known[0] != epoch:
            order = _packing.permutation(len(self.datasets[source]), key(self._seed, "epoch", source, epoch))
            self._shuffles[source] = known = (epoch, order)
        return known[1]


def _check(datasets: Sequence[PackedDataset], weights: Sequence[float]) -> None:
    if not datasets or len(datasets) != len(weights):
        raise UserError(f"data.sources: {len(datasets)} sources with {len(weights)} weights cannot be blended.")
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise UserError(f"data.sources.weight: {weight} is no share; give a positive number.")
    lengths = sorted({dataset.sequence_length for dataset in datasets})
    if len(lengths) > 1:
        raise UserError(f"data.sources: are packed for different lengths {lengths}; pack them for one.")
    if len({dataset.tokenizer_fingerprint for dataset in datasets}) > 1:
        raise UserError("data.sources: were tokenized by different tokenizers; tokenize them with one.")
