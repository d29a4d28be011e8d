"""Conversion's tiny models of each family, and ranks that the tests of this room share."""

from collections.abc import Iterator

import pytest

from tests.convert.conftest import build
from tests.evaluation.backends.model_ranks import ModelRanks

__all__ = ["build"]


@pytest.fixture(scope="module")
def ranks() -> Iterator[ModelRanks]:
    with ModelRanks() as started:
        yield started
