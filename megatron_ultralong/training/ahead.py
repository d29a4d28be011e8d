"""One thing read ahead, in a thread beside the one that computes."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Hashable
from typing import Any


class Ahead:
    """What was started is there when it is asked for; what is asked for without having been started is read then.

    One at a time, and never beside another reading, so that what is read need not be made for threads. An error is
    raised where its result is taken, and forgotten with a result that nobody takes.
    """

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "ahead")
        self._under_way: tuple[Hashable, concurrent.futures.Future[Any]] | None = None

    def start(self, key: Hashable, read: Callable[[], Any]) -> None:
        """Begin to read."""
        self.wait()
        self._under_way = key, self._thread.submit(read)

    def take(self, key: Hashable, read: Callable[[], Any]) -> Any:
        """What `read` gives, read ahead if it was started under this key."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None and under_way[0] == key:
            return under_way[1].result()
        if under_way is not None:
            concurrent.futures.wait([under_way[1]])
        return read()

    def wait(self) -> None:
        """Until nothing is being read: before the data are asked for anything else."""
        if self._under_way is not None:
            concurrent.futures.wait([self._under_way[1]])
