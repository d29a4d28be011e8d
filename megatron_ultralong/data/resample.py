"""Which documents to train on, how often: short ones down, long ones up, every source keeping its share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus import Corpus
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json


def read_document_ids(folder: Path, corpus: Corpus) -> npt.NDArray[np.int64]:
    """The resampled list, int64 [M].

    Raises:
        UserError: it is missing, or was made for other tokens than `corpus`.
    """
    again = "resample again with tools/resample_corpus.py"
    manifest = read_json(Path(folder) / "manifest.json", "the resampled list's manifest", again)
    if manifest.get("tokens_fingerprint") != corpus.tokens_fingerprint:
        raise UserError(f"{folder}: was resampled from other tokens than those in {corpus.prefix}.bin; {again}.")
    try:
        ids: npt.NDArray[np.int64] = np.load(Path(folder) / "document_ids.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/document_ids.npy: cannot be read ({error}); {again}.") from None
    return ids
