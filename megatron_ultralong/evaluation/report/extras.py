"""What a report shows beside runs and curves of training: whatever else a JSON file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json


def read_extra(path: Path) -> dict[str, Any]:
    """Further keys for the report.

    Raises:
        UserError: not a JSON object.
    """
    extra = read_json(path, "the file of further results", "give a JSON object")
    if not isinstance(extra, dict):
        raise UserError(f"{path}: it holds a JSON {type(extra).__name__}; give a JSON object.")
    return extra
