"""Who of a job is alive, through its store, in requests that grow with the ranks and not with their square.

Every rank writes its own word under its own key. Rank 0 reads them all in one request, and writes down what it
concludes: who has been silent for how long, and who has left in error. The others read that alone; that it goes on
changing tells them that rank 0 lives.
"""

from __future__ import annotations

import json
import time
from typing import Any

LEFT = "left"
"""A rank's last word: it has finished."""
REFUSED = "refused"
"""A rank's last word: a UserError, which follows. The others are likely to meet the same."""
FAILED = "failed"
"""A rank's last word: any other error, which follows."""
ENDED = "ended"
"""A rank's last word: it ends because another one is lost."""
LAST = (LEFT, REFUSED, FAILED, ENDED)

_CONCLUSION = "conclusion"
_NAMED = 64  # ranks that a conclusion names; more are gone only with the network


class RollCall:
    """One rank's part of the roll call.

    Args:
        store: the job's, with a prefix of its own (torch.distributed's Store).
        rank, size: of the job.
        beat: seconds between two words of a rank.

    Attributes:
        silent: ranks that should speak and did not for two beats or more, and for how many seconds.
        failed: ranks that left in error, and their last words.
        places: where those ranks were last seen.
    """

    def __init__(self, store: Any, rank: int, size: int, beat: float) -> None:
        self.store, self.rank, self.size, self.beat = store, rank, size, beat
        self.silent: dict[int, float] = {}
        self.failed: dict[int, str] = {}
        self.places: dict[int, str] = {}
        self._heard: dict[int, tuple[str, float]] = {}
        self._count = 0
        self.finished = False
        if rank == 0:
            self._publish()

    def say(self, word: str) -> None:
        """Write this rank's word; one that begins with one of LAST is its last."""
        self.store.set(str(self.rank), word)
        self.finished = word.startswith(LAST)

    def word(self, rank: int) -> str:
        """What a rank has said last; the request waits for a rank that never spoke."""
        return str(self.store.get(str(rank)).decode())

    def hear(self) -> None:
        """Learn who is silent and who has failed: on rank 0 from every rank, elsewhere from rank 0."""
        now = time.monotonic()
        if self.rank == 0:
            self._listen([str(rank) for rank in range(self.size)], now)
            self._conclude(now)
            self._publish()
            return
        self._listen([_CONCLUSION], now)
        text, since = self._heard[0]
        found = json.loads(text)
        self.silent = {int(rank): seconds for rank, seconds in found["silent"].items()}
        self.failed = {int(rank): word for rank, word in found["failed"].items()}
        self.places = {int(rank): place for rank, place in found["places"].items()}
        if now - since > 2 * self.beat and not found["finished"]:
            self.silent[0] = now - since

    def everyone_has_left(self) -> bool:
        """On rank 0: whether no other rank is still to speak."""
        words = ((rank, word) for rank, (word, _) in self._heard.items() if rank)
        return all(word.startswith(LAST) or rank in self.silent for rank, word in words)

    def lowest_left(self) -> int:
        """The lowest rank that is neither silent nor has failed."""
        lost = self.silent.keys() | self.failed.keys()
        return min((rank for rank in range(self.size) if rank not in lost), default=self.rank)

    def _listen(self, keys: list[str], now: float) -> None:
        for place, word in enumerate(self.store.multi_get(keys)):
            text = word.decode()
            if place not in self._heard or self._heard[place][0] != text:
                self._heard[place] = text, now

    def _conclude(self, now: float) -> None:
        self.silent, self.failed = {}, {}
        for rank, (word, since) in self._heard.items():
            if word.startswith((REFUSED, FAILED)):
                self.failed[rank] = word[:400]
            elif not word.startswith(LAST):
                self.places[rank] = word.partition(" ")[2]  # without the number of the beat
                if now - since > 2 * self.beat:
                    self.silent[rank] = now - since

    def _publish(self) -> None:
        self._count += 1
        silent = dict(list(self.silent.items())[:_NAMED])
        failed = dict(list(self.failed.items())[:_NAMED])
        named = [0, *(rank for rank in (*silent, *failed) if rank in self.places)][:8]
        places = {rank: self.places.get(rank, "the beginning") for rank in named}
        conclusion = {"silent": silent, "failed": failed, "places": places, "finished": self.finished}
        self.store.set(_CONCLUSION, json.dumps({"count": self._count, **conclusion}))
