"""Where an answer ends: at one of the model's end tokens, or at a text to stop at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json


@dataclasses.dataclass(frozen=True)
class AnswerEnd:
    """What ends an answer.

    Attributes:
        tokens: the model's end tokens.
        decode: ids -> text, without special tokens.
    """

    tokens: frozenset[int]
    decode: Callable[[Sequence[int]], str]

    def reached(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last of these ids ends the answer. Decodes as many ids as the longest stop text may take."""
        if ids[-1] in self.tokens:
            return True
        if not stop:
            return False
        longest = max(len(text.encode()) for text in stop)
        tail = self.decode(ids[-longest - 8 :])
        return any(text in tail for text in stop)

    def text(self, ids: Sequence[int], stop: Sequence[str]) -> str:
        """The answer, without what ended it."""
        text = self.decode(ids[:-1] if ids and ids[-1] in self.tokens else ids)
        places = [place for each in stop if (place := text.find(each)) >= 0]
        return text[: min(places)] if places else text


def end_tokens(folder: Path, config: dict[str, Any], of_tokenizer: Callable[[], int]) -> frozenset[int]:
    """The model's end tokens: of generation_config.json, else of config.json, else the tokenizer's.

    Raises:
        UserError: an entry is no id and no list of ids.
    """
    path = Path(folder) / "generation_config.json"
    own = read_json(path, "the generation configuration", "mend or remove it") if path.exists() else {}
    for where, values in ((path, own if isinstance(own, dict) else {}), (Path(folder) / "config.json", config)):
        given = values.get("eos_token_id")
        ids = given if isinstance(given, list) else [given]
        if given is None:
            continue
        if not ids or not all(type(each) is int and each >= 0 for each in ids):
            raise UserError(f"{where}: eos_token_id is {given!r}; give an id, or a list of ids.")
        return frozenset(ids)
    return frozenset([of_tokenizer()])
