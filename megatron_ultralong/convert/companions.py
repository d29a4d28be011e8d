"""What an export takes along from the source model: tokenizer, chat templates, generation_config.json.

They are copied as they are but for what would be wrong of the exported model: the length they state, truncation and
padding that someone's last use left in tokenizer.json (every encoding would be cut or filled up by it), and names of
code files, which do not come along.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.formats.hf_folder import (
    TOKENIZER_FILES,
    copy_files,
    matching,
    own_tokenizer_fingerprint,
)
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json, write_json

COMPANIONS = (*TOKENIZER_FILES, "generation_config.json")
"""Patterns of what comes along."""
_NOT_EXPORTED = (
    *("max_length", "stride", "truncation", "truncation_strategy", "padding", "pad_to_multiple_of"),
    "auto_map",
)
"""Entries of tokenizer_config.json: what transformers writes there of truncation and padding, and names of code."""


@dataclasses.dataclass(frozen=True)
class Companions:
    """Where the files come from, and the length that they are to state.

    Attributes:
        folder: the source model.
        length: tokens of context of the export.
    """

    folder: Path
    length: int

    @classmethod
    def of(cls, hf: Path | None, description: Description) -> Companions:
        """The folder that `--hf` or the checkpoint names.

        Raises:
            UserError: it is no folder, or its tokenizer is not the one that the model was trained with.
        """
        run = description.run  # a converter's has `source`, a training run's the model section of its configuration
        named = hf or run.get("source") or run.get("model", {}).get("hf")
        if named is None or not Path(named).is_dir():
            raise UserError(f"{named}, to take the tokenizer from, is no folder; give --hf FOLDER.")
        folder = Path(named)
        found = own_tokenizer_fingerprint(folder)
        if description.tokenizer_fingerprint and found != description.tokenizer_fingerprint:
            raise UserError(
                f"{folder / 'tokenizer.json'} is not the tokenizer of this checkpoint; give --hf FOLDER with it."
            )
        return cls(folder, description.rope.length)

    def files(self) -> list[Path]:
        """What comes along, in order."""
        return matching(self.folder, COMPANIONS)

    def write(self, folder: Path) -> None:
        """Copy all of it into `folder`, as the export needs it."""
        copy_files(self.folder, folder, COMPANIONS)
        if (tokenizer := self._object("tokenizer.json", "the tokenizer")) is not None:
            if tokenizer.get("truncation") or tokenizer.get("padding"):
                write_json(folder / "tokenizer.json", tokenizer | {"truncation": None, "padding": None})
        if (config := self._object("tokenizer_config.json", "the tokenizer's configuration")) is not None:
            kept = {name: value for name, value in config.items() if name not in _NOT_EXPORTED}
            write_json(folder / "tokenizer_config.json", kept | {"model_max_length": self.length})
        if (config := self._object("generation_config.json", "the generation configuration")) is not None:
            if isinstance(config.get("max_length"), int) and config["max_length"] < self.length:
                config["max_length"] = self.length  # Llama-2 states 4,096 there, and it would cut
                write_json(folder / "generation_config.json", config)

    def _object(self, name: str, what: str) -> dict[str, Any] | None:
        """A JSON object of the source folder; None: it has none."""
        path = self.folder / name
        if not path.exists():
            return None
        content = read_json(path, what, "mend or replace it")
        if not isinstance(content, dict):
            raise UserError(f"{path}: {what} is no JSON object; mend or replace it.")
        return content
