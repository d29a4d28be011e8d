"""PREFIX.sources.npy, the source of each document, written as it comes, and what the manifest says of the sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_POWERS = 32  # a document has fewer than 2^31 tokens


def write_sources(
    path: Path, names: Sequence[str], count: int, columns: Iterable[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]
) -> dict[str, Any]:
    """Write the file in memory of one pair of arrays.

    Args:
        path: of PREFIX.sources.npy.
        names: of the sources.
        count: documents.
        columns: of all documents, in order, their sources (indices into `names`) and their lengths (1 or more).

    Returns:
        For the manifest: `sources`, and `length_histogram`, documents and tokens by source and floor(log2(length)).
    """
    documents = np.zeros((len(names), _POWERS), dtype=np.int64)
    tokens = np.zeros_like(documents)
    header = {"descr": "<i4", "fortran_order": False, "shape": (count,)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for sources, lengths in columns:
            stream.write(np.ascontiguousarray(sources, dtype="<i4").data)
            bins = np.frexp(lengths)[1] - 1  # floor(log2)
            np.add.at(documents, (sources, bins), 1)
            np.add.at(tokens, (sources, bins), lengths)
    last = int(np.flatnonzero(documents.any(axis=0)).max())
    histogram = {
        "tokens_from": [1 << i for i in range(last + 1)],
        "documents": {name: documents[i, : last + 1].tolist() for i, name in enumerate(names)},
        "tokens": {name: tokens[i, : last + 1].tolist() for i, name in enumerate(names)},
    }
    return {"sources": list(names), "length_histogram": histogram}
