"""The section [data] of a run's configuration: what the model is trained on, source by source."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """One packed index in the blend."""

    index: Path
    """Folder written by tools/pack_corpus.py."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources' weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the model is trained on."""

    sources: tuple[DataSource, ...]
    """The packed indexes, all of the same sequence length."""
    sequence_length: int
    """Tokens a sample; every source must be packed for it."""
    document_mask: bool = False
    """True: tokens attend only within their document. False, the paper's way: to the whole packed sequence."""
    loss_on_separators: bool = True
    """Whether the model learns to write separators: the loss counts where the next token is part of one."""
    loss_on_first_tokens: bool = True
    """Whether the loss counts where the next token is a document's first; with document_mask it never does."""
    repacked: Literal["refuse", "restart"] = "refuse"
    """When a run resumes and a source's folder holds another index than the run has read there: refuse it, or read the
    new one from its beginning, whatever was read of the old."""
    pad_to_divisible: bool = False
    """True: a sequence_length that the layout does not divide is padded where samples are read, without loss on the
    padding; False: it is an error."""
