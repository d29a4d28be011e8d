"""[validation]: what a run is judged by while it goes on."""

from __future__ import annotations

import dataclasses
from typing import Literal

from megatron_ultralong.config.data_section import DataSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What a run is judged by while it goes on (docs/training.md): forward passes over held-out samples."""

    sources: tuple[DataSource, ...] = ()
    """Packed indexes of documents that are not trained on, of the same sequence length as the data's. Each is reported
    by itself, under its folder's name."""
    interval: int = 0
    """Steps between validations; 0: only after the last step."""
    at_start: bool = False
    """Validate before the first step too."""
    samples: int = 0
    """Samples of each source, evenly spread over it and always the same; 0, or more than there are: all."""
    bounds: tuple[int, ...] = ()
    """Tokens of context at which one bucket of positions ends and the next begins; default: 4096 and the context that
    the model had before, where they lie within the sequence."""
    needles: tuple[int, ...] = ()
    """Lengths in tokens at which keys are hidden in held-out text and their digits judged by teacher forcing; none by
    default."""
    needle_depths: int = 3
    """Depths at each of these lengths, evenly from the beginning to the end."""
    needle_keys: int = 4
    """Keys at each depth, one a prompt."""
    needle_form: Literal["base", "chat"] = "base"
    """The text with its question as it is, or as a user's turn in the model's chat template."""
    keep_best: str = ""
    """A metric, such as "loss/held_out" or "needles/4096": the checkpoint of the step where it was best is kept, and
    checkpoint.save/best leads to it. A validation that improves it saves one. Empty: none is kept."""
    warn: float = 0.05
    """A loss this many nats above the lowest that its source or bucket had is named in the log; 0: none is."""
    patience: int = 0
    """Validations in a row that do not improve validation.keep_best, after which the run ends; 0: it never does."""
