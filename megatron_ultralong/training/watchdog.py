"""How the processes of a job leave it: together at the end, and within a minute when one of them is lost.

Every rank's thread says every two seconds that it lives, at which step and in which call it is (`whereabouts`), and
hears who does not (`roll_call`). A rank that fails alone prints its traceback before anything else, says so to the
others, gives its communicators up and exits: NCCL's own end waits for peers that wait for this one. A rank that has
failed, or says nothing for half of `parallel.timeout`, ends the others; the lowest that is left prints one sentence.
Cost: three small requests to the store a rank and beat.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

import torch
import torch.distributed as dist

from megatron_ultralong.engine import groups
from megatron_ultralong.errors import UserError, report
from megatron_ultralong.training import roll_call, whereabouts
from megatron_ultralong.training.roll_call import RollCall

logger = logging.getLogger(__name__)

_BEAT = 2.0
_GRACE = 5 * _BEAT  # in which the others meet a mistake that one of them has named
_LONGEST_EXIT = 30.0  # from a traceback to the end of its process, whatever blocks
_FROM_PEERS = re.compile(r"gloo|nccl|socket|connection|timed out|timeout|recvBytes|TCPStore", re.IGNORECASE)
_STORE_GONE = "the store of the job is gone, and with it the rank or the launcher that kept it"


class Watchdog:
    """A job from its processes' joining to their leaving: beats once it is started, and ends what its block began.

    Args:
        timeout: `parallel.timeout`, in seconds.

    Attributes:
        step: what the main thread is at, for the others to see.
        closing: what is to be closed at the end, well or not; after a failure it is closed once that is printed.
    """

    def __init__(self, timeout: int) -> None:
        self.patience = timeout / 2
        self.step = "the beginning"
        self.closing = contextlib.ExitStack()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._refused_since = 0.0

    def start(self) -> None:
        """Begin to beat, once the processes have joined; every rank calls it."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.size == 1:
            return
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = datetime.timedelta(seconds=max(10.0, self.patience))
        place = f"ultralong/watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        # A connection of its own: the main one is locked while it waits for a key.
        self.store = dist.PrefixStore(place, dist.TCPStore(host, port, is_master=False, timeout=limit))
        self.roll = RollCall(self.store, self.rank, self.size, _BEAT)
        self._say(0)
        dist.barrier()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def together(self) -> None:
        """Return once rank 0 has come here too, be it after hours: no collective of theirs runs out of time."""
        if self._thread is None:
            return
        if self.rank == 0:
            self.store.set("together", "")
            self._wait(lambda: self.store.add("gone on", 0) == self.size - 1, _GRACE)
            return
        while not self.store.check(["together"]):
            time.sleep(_BEAT / 2)
        self.store.add("gone on", 1)

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._thread is not None:
            self._leave(error)
        self.closing.close()
        if self._thread is not None:
            self._stop()
            self._last_word(roll_call.LEFT)
        groups.finalize()

    def _leave(self, error: BaseException) -> NoReturn:
        """End this process after an error, its own or a lost peer's, without waiting for any other."""
        if self._from_peers(error):
            self._stop()
            self._explain(error)
        status = report(error) if not isinstance(error, UserError) else 2
        _exit_within(_LONGEST_EXIT, status)
        self._stop()
        what = " ".join(str(error).split()) or type(error).__name__
        self._last_word(f"{roll_call.REFUSED if status == 2 else roll_call.FAILED} {what}")
        if isinstance(error, UserError) and not self._is_said_nearby():
            report(error)
        with contextlib.suppress(Exception):
            self.closing.close()
        self._let_them_hear()
        aborting = threading.Thread(target=groups.abort, daemon=True)
        aborting.start()
        aborting.join(5.0)
        sys.stderr.flush()
        os._exit(status)

    @staticmethod
    def _from_peers(error: BaseException) -> bool:
        """Whether a collective may have failed here because of another rank; if none is lost, nothing is hidden."""
        if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
            return False
        return isinstance(error, dist.DistError) or bool(_FROM_PEERS.search(f"{type(error).__name__} {error}"))

    def _is_said_nearby(self) -> bool:
        """Whether this machine's first rank says the same: one process of a machine speaks for it."""
        first = self.rank - int(os.environ.get("LOCAL_RANK", "0"))
        try:
            return first != self.rank and self._wait(
                lambda: self.roll.word(first).startswith(roll_call.REFUSED), 2 * _BEAT
            )
        except RuntimeError:
            return True  # rank 0 kept the store, and has left with it

    def _stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _last_word(self, word: str) -> None:
        try:
            self.roll.say(word)
            if self.rank == 0:
                self.roll.hear()
        except RuntimeError:
            logger.debug("the store is gone", exc_info=True)

    def _let_them_hear(self) -> None:
        """Rank 0, which may keep the store, stays until the others have heard why it ends."""

        def heard() -> bool:
            self.roll.hear()
            return self.roll.everyone_has_left()

        if self.rank == 0:
            with contextlib.suppress(RuntimeError):
                self._wait(heard, _GRACE)

    @staticmethod
    def _wait(condition: Callable[[], bool], seconds: float) -> bool:
        """Whether it comes true in time."""
        end = time.monotonic() + seconds
        while not (true := condition()) and time.monotonic() < end:
            time.sleep(0.1)
        return true

    def _say(self, beat: int) -> None:
        self.roll.say(f"{beat} {self.step}, in {whereabouts.of_process()}")

    def _run(self) -> None:
        beat = 0
        while not self._stopped.wait(_BEAT):
            beat += 1
            try:
                self._say(beat)
                self.roll.hear()
            except RuntimeError:
                if not self._stopped.wait(3 * _BEAT):  # at the end of a run the rank that keeps the store may be first
                    self._end(_STORE_GONE)
                return
            silent = [rank for rank, seconds in self.roll.silent.items() if seconds > self.patience]
            if silent:
                self._end(self._gone(silent))
            elif self.roll.failed and not self._is_grace():
                self._end(self._failed())

    def _is_grace(self) -> bool:
        """Whether those who left only named a mistake, and so lately that this rank may be about to do the same."""
        if any(word.startswith(roll_call.FAILED) for word in self.roll.failed.values()):
            return False
        self._refused_since = self._refused_since or time.monotonic()
        return time.monotonic() - self._refused_since < _GRACE

    def _explain(self, error: BaseException) -> None:
        """Say which rank made a collective of this one fail, and end; return if none did."""
        reason = " ".join(str(error).split()).split(" This is typically", 1)[0][:300]
        place = whereabouts.of_error(error)
        try:
            for beat in range(4):  # long enough for the living to be heard, and by rank 0 first
                self.roll.say(f"{-beat} {self.step}, in {place}")
                self.roll.hear()
                if self.roll.failed:
                    break
                time.sleep(1.2 * _BEAT)
            self.roll.hear()
        except RuntimeError:
            self._end(f"{_STORE_GONE} ({reason})", place)
        if self.roll.failed:
            self._end(self._failed(), place)
        elif self.roll.silent:
            self._end(self._gone(list(self.roll.silent)), place)
        logger.error("error, rank %d: a collective failed though every rank is alive (%s)", self.rank, reason)

    def _failed(self) -> str:
        words = "; ".join(f"rank {rank}: {word.partition(' ')[2]}" for rank, word in list(self.roll.failed.items())[:8])
        return f"rank {min(self.roll.failed)} left before its end ({words[:400] or 'without a word'})"

    def _gone(self, silent: list[int]) -> str:
        names = ("rank " if len(silent) == 1 else "ranks ") + ", ".join(map(str, silent))
        last = self.roll.places.get(silent[0], "the beginning")
        return f"{names} stopped answering: killed, stuck, or on a machine that is gone; last seen at {last}"

    def _end(self, what: str, place: str = "") -> NoReturn:
        """Print the sentence on the lowest rank that is left, and end this process."""
        _exit_within(_LONGEST_EXIT, 1)
        place = place or whereabouts.of_process()
        speaks = self.rank == self.roll.lowest_left()
        try:
            self.roll.say(roll_call.ENDED)
        except RuntimeError:  # without the store nobody knows who is left: one a machine speaks
            speaks = self.rank == 1 or os.environ.get("LOCAL_RANK") == "0"
        if sys.stderr.isatty():
            print("\x1b[?25h", end="", file=sys.stderr)  # the live view hides the cursor, and does not get to end
        if speaks:
            print(f"error: {what}; rank {self.rank} waited at {self.step}, in {place}", file=sys.stderr, flush=True)
        self._let_them_hear()
        os._exit(1)


def _exit_within(seconds: float, status: int) -> None:
    """End this process that much later if nothing else has: no end of a library's may hold a job."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
