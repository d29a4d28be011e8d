"""A model's config.json, read by tools that need its sizes and none of its weights. No torch; milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.families.rules import Dimensions
from megatron_ultralong.families.tables import rules_of
from megatron_ultralong.files import read_json

_NAMED = "config.json: "


def decoder_at(path: Path, mend: str) -> dict[str, Any]:
    """The config.json of a decoder that this project trains, with its loader's defaults where it says nothing.

    Args:
        path: the file, whatever its name.
        mend: what to do where it is no such file.

    Raises:
        UserError: it is missing, no JSON object, of an unknown family, or has a size that is none; names the file.
    """
    value = read_json(path, "the model's configuration", mend)
    if not isinstance(value, dict):
        raise UserError(f"{path}: no JSON object; {mend}.")
    try:
        Dimensions.from_hf(value)
        rules_of(value)
        return completed(value)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(_NAMED)}") from None
