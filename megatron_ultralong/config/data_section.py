"""The section [data] of a run's configuration: what the model is trained on, source by source.

How a sample is read (documents isolated or not, which labels count) is a matter of its source: what a source leaves
open, the section says for all.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How the samples of one source are read, with nothing left open."""

    document_mask: bool
    loss_on_separators: bool
    loss_on_first_tokens: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """One packed index in the blend."""

    index: Path
    """Folder written by tools/pack_corpus.py."""
    weight: float = 1.0
    """Share of what data.blend counts, relative to the other sources' weights; a validation's sources have none."""
    document_mask: bool | None = None
    """data.document_mask of this source alone; left out: what that says."""
    loss_on_separators: bool | None = None
    """data.loss_on_separators of this source alone; left out: what that says."""
    loss_on_first_tokens: bool | None = None
    """data.loss_on_first_tokens of this source alone; left out: what that says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the model is trained on."""

    sources: tuple[DataSource, ...]
    """The packed indexes, all of the same sequence length."""
    sequence_length: int
    """Tokens a sample; every source must be packed for it."""
    blend: Literal["samples", "tokens", "iterations"] = "samples"
    """What a source's weight is its share of: "samples"; "tokens", of them what is no padding; or "iterations", the
    optimizer steps, each of which then reads one source alone, so that no rank waits for another's longer documents."""
    document_mask: bool = False
    """True: tokens attend only within their document. False, the paper's way: to the whole packed sequence. A source
    may say otherwise for itself, as of the next two."""
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

    def options(self, source: DataSource) -> SourceOptions:
        """How a source's samples are read: as it says, and where it says nothing as the section does."""
        names = [field.name for field in dataclasses.fields(SourceOptions)]
        said = {name: getattr(source, name) for name in names}
        return SourceOptions(**{name: getattr(self, name) if said[name] is None else said[name] for name in names})

    @property
    def masks(self) -> tuple[bool, ...]:
        """Whether each source isolates its documents; while there are no sources, what those to come would do."""
        return tuple(self.options(source).document_mask for source in self.sources) or (self.document_mask,)

    @property
    def mask_field(self) -> str:
        """The field by which the first source that isolates documents does so, for a message; "" where none does."""
        if not any(self.masks):
            return ""
        place = self.masks.index(True)
        own = bool(self.sources) and self.sources[place].document_mask is not None
        return f"data.sources.{place}.document_mask" if own else "data.document_mask"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources, for people: their folders' names, or where two are alike, the paths."""
        names = tuple(source.index.name for source in self.sources)
        return names if len(set(names)) == len(names) else tuple(str(source.index) for source in self.sources)
