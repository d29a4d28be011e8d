"""Which tokens end an answer, as the files beside a model say; the same for every backend that loads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json


def end_tokens(folder: Path, config: dict[str, Any], of_tokenizer: int | None) -> frozenset[int]:
    """Those that generation_config.json and config.json name, else the tokenizer's; none where it has none.

    Args:
        folder: of the model.
        config: its config.json.
        of_tokenizer: id of the tokenizer's eos_token.

    Raises:
        UserError: an entry is no id and no list of ids.
    """
    path, found = Path(folder) / "generation_config.json", set()
    own = read_json(path, "the generation configuration", "mend or remove it") if path.exists() else {}
    for where, values in ((path, own if isinstance(own, dict) else {}), (Path(folder) / "config.json", config)):
        given = values.get("eos_token_id")
        ids = given if isinstance(given, list) else [] if given is None else [given]
        if not all(type(each) is int and each >= 0 for each in ids):
            raise UserError(f"{where}: eos_token_id is {given!r}; give an id, or a list of ids.")
        found.update(ids)
    return frozenset(found) if found or of_tokenizer is None else frozenset([of_tokenizer])
