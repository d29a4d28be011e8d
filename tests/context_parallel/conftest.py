"""The ranks that the tests of this room share."""

from collections.abc import Iterator

import pytest

from tests.context_parallel.ring_ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    with Ranks() as started:
        yield started
