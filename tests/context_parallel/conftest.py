"""The ranks that the tests of a file share."""

from collections.abc import Iterator

import pytest

from tests.context_parallel.ring_ranks import Ranks


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as started:
        yield started
