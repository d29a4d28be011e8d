"""How many tokens a text or a whole prompt takes: exactly, and a million of them in a tenth of a second.

Ids are the tokenizer's own (`data/tokenizer`). They are counted by gigatoken where it gives the same ids on the
tokenizer's probes, else by the reference, which takes two to six seconds a million.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.data.tokenizer.encoders import Encoder, GigatokenEncoder
from megatron_ultralong.evaluation.rendering import rendered
from megatron_ultralong.evaluation.samples import Form, Sample

Counts = npt.NDArray[np.int64]


class Counter:
    """Counts with one tokenizer.

    Args:
        tokenizer: whose tokens; in chat form its template's are counted too.
        fast: gigatoken gives the same ids; None: find out.
    """

    def __init__(self, tokenizer: ChatTokenizer, fast: bool | None = None) -> None:
        self.tokenizer = tokenizer
        inner = tokenizer.tokenizer
        self.is_fast = inner.check_fast(inner.likely_recipe, []) if fast is None else fast
        self._encoder: Encoder = GigatokenEncoder(inner.likely_recipe) if self.is_fast else inner.reference

    def each(self, texts: Sequence[str]) -> Counts:
        """Tokens of each of some texts, int64 [texts]."""
        if not texts:
            return np.zeros(0, np.int64)
        return self._encoder.encode_batch(texts)[1]

    def count(self, text: str) -> int:
        """Tokens of a text, without special ones put before or after it."""
        if self._encoder.cuts is None:
            return int(self.each([text])[0])
        return int(self.each(list(self._encoder.cuts.pieces(text))).sum())

    def prompt(self, sample: Sample) -> int:
        """Tokens of the sample as a model gets it, up to where the answer begins."""
        start = len(self.tokenizer.start_ids) if sample.form == "base" else 0
        return start + self.count(rendered(sample, sample.form, self.tokenizer))


_KNOWN: dict[str, bool] = {}
"""Tokenizers by fingerprint -> whether gigatoken may count; a worker is told by its parent."""


def know(fingerprint: str, fast: bool) -> None:
    """Spare this process the comparison of gigatoken with the reference."""
    _KNOWN[fingerprint] = fast


@functools.lru_cache(maxsize=2)
def counter_of(tokenizer: ChatTokenizer) -> Counter:
    """The counter of a tokenizer; one a process."""
    counter = Counter(tokenizer, _KNOWN.get(tokenizer.tokenizer.fingerprint))
    know(tokenizer.tokenizer.fingerprint, counter.is_fast)
    return counter


def template_keeps(form: Form, sample: Sample, tokenizer: ChatTokenizer) -> bool:
    """Whether the rendered prompt holds the sample's text as it is."""
    return form == "base" or sample.input in rendered(sample, form, tokenizer)
