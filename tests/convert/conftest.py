"""The `build` fixture: each tiny model is made once a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.convert.tiny_models import Build, build_model


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A function as `build_model`, without the folder: each model is built once a session and not to be changed."""
    made: dict[str, Path] = {}

    def cached(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        key = f"{family} {dtype} {sorted(changes.items())}"
        if key not in made:
            made[key] = build_model(tmp_path_factory.mktemp("hf") / "model", family, dtype, **changes)
        return made[key]

    return cached
