"""What resampling did to each source: the report's figures, from the selection's counts and one pass for histograms."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.resampling.selection import BLOCK, Selection

Ints = npt.NDArray[np.int64]
_POWERS = 32  # a document has fewer than 2^31 tokens


def summarize(selection: Selection, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A source each: budget, documents and tokens before and after, dropped and repeated ones, lengths by powers of 2.

    The lengths are rows {from, below, documents, tokens, documents_after, tokens_after}, empty ones left out.
    """
    histograms = _histograms(selection, len(names))
    return [
        {
            "name": name,
            "budget": selection.budgets[source],
            "missing_tokens": selection.missing[source],
            **_figures(selection, source),
            "histogram": [
                {"from": 1 << power, "below": 2 << power, **dict(zip(_COLUMNS, row, strict=True))}
                for power, row in enumerate(histograms[:, source].T.tolist())
                if row[0]
            ],
        }
        for source, name in enumerate(names)
    ]


_COLUMNS = ("documents", "tokens", "documents_after", "tokens_after")


def _figures(selection: Selection, source: int) -> dict[str, int]:
    """Counts of one source, which follow from those of its classes."""
    documents, tokens = selection.documents[source], selection.tokens[source]
    rounds, chosen = selection.rounds[source], selection.chosen_documents[source]
    chosen_tokens = selection.chosen_tokens[source]
    again = np.maximum(rounds - 1, 0)
    return {
        "documents_before": int(documents.sum()),
        "documents_after": int((rounds * documents + chosen).sum()),
        "tokens_before": int(tokens.sum()),
        "tokens_after": int((rounds * tokens + chosen_tokens).sum()),
        "dropped_documents": int((documents - chosen)[rounds == 0].sum()),
        "dropped_tokens": int((tokens - chosen_tokens)[rounds == 0].sum()),
        "repeated_documents": int(documents[rounds > 1].sum() + chosen[rounds == 1].sum()),
        "repeated_tokens": int((again * tokens).sum() + chosen_tokens[rounds > 0].sum()),
        "most_repeats": int((rounds + (chosen > 0))[documents > 0].max(initial=0)),
    }


def _histograms(selection: Selection, sources: int) -> Ints:
    """int64 [4, sources, powers]: `_COLUMNS` by floor(log2(length))."""
    sums = np.zeros((4, sources * _POWERS), dtype=np.int64)
    for begin in range(0, len(selection.lengths), BLOCK):
        lengths = selection.lengths[begin : begin + BLOCK].astype(np.int64)
        counts = selection.counts(begin, begin + BLOCK)
        powers = np.frexp(lengths.astype(np.float64))[1] - 1  # exact, unlike log2
        rows = selection.source_ids[begin : begin + BLOCK].astype(np.int64) * _POWERS + np.maximum(powers, 0)
        for column, values in enumerate((np.ones_like(counts), lengths, counts, counts * lengths)):
            sums[column] += np.bincount(rows, weights=values, minlength=sources * _POWERS).astype(np.int64)
    return sums.reshape(4, sources, _POWERS)
