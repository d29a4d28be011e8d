"""Which rank a job waits for: a process that was killed, or stopped, or is stuck, is named by those that are left.

Every rank's thread says every two seconds through the job's store that it lives, at which step and in which call
its main thread is (read from the Python stack, so nothing is wrapped and the hot path pays nothing), and reads what
the others said. A rank that says nothing for half of `parallel.timeout` ends the others; a collective that fails
earlier (gloo notices a closed connection, and both gloo and NCCL a timeout) is explained by the same knowledge. The
lowest rank that is left prints one sentence; all exit with status 1. Cost: two small requests to the store a beat.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

import torch.distributed as dist

import megatron_ultralong
from megatron_ultralong.context_parallel import ring_exchange

logger = logging.getLogger(__name__)

_BEAT = 2.0
_FROM_PEERS = re.compile(r"gloo|nccl|socket|connection|timed out|timeout|recvBytes|store", re.IGNORECASE)
_EXCHANGES = {  # files whose waits have no collective's name on the stack
    Path(ring_exchange.__file__).name: "the exchange of keys and values",
    "p2p_communication.py": "a send or receive between pipeline stages",
}
_LEFT = "left"  # a rank's last word: it finished, or failed on its own, and says why
_ENDED = "ended"  # the last word of one that another rank's loss ended


class Watchdog:
    """Beats while it is started, and explains the errors that leave its block.

    Args:
        timeout: `parallel.timeout`, in seconds.

    Attributes:
        step: what the main thread is at, for the others to see.
    """

    def __init__(self, timeout: int) -> None:
        self.patience = timeout / 2
        self.step = "the beginning"
        self._closing = threading.Event()
        self._main = threading.main_thread().ident
        self._thread: threading.Thread | None = None
        self._heard: dict[int, tuple[str, float]] = {}

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
        self._say(0)
        dist.barrier()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._closing.set()
        self._thread.join()
        if isinstance(error, RuntimeError) and _FROM_PEERS.search(f"{type(error).__name__} {error}"):
            self._explain(error)
        try:
            self.store.set(str(self.rank), f"{_LEFT} {error or ''}")
        except RuntimeError:
            logger.debug("the store is gone", exc_info=True)

    def _say(self, beat: int) -> None:
        self.store.set(str(self.rank), f"{beat} {self.step}, in {doing(sys._current_frames().get(self._main or 0))}")

    def _run(self) -> None:
        beat = 0
        while not self._closing.wait(_BEAT):
            beat += 1
            try:
                self._say(beat)
                self._hear()
            except RuntimeError:
                if not self._closing.wait(3 * _BEAT):  # at the end of a run the rank that keeps the store may be first
                    self._end("the store of the job is gone, and with it the rank or the launcher that kept it")
                return
            if silent := self._silent(self.patience):
                self._end(self._gone(silent))

    def _hear(self) -> None:
        now = time.monotonic()
        words = self.store.multi_get([str(rank) for rank in range(self.size)])
        for rank, word in enumerate(word.decode() for word in words):
            if rank not in self._heard or self._heard[rank][0] != word:
                self._heard[rank] = word, now

    def _silent(self, seconds: float) -> list[int]:
        """Ranks that have said nothing new for so long, and did not say that they leave."""
        now = time.monotonic()
        heard = self._heard.items()
        return [rank for rank, (word, since) in heard if now - since > seconds and not word.startswith((_LEFT, _ENDED))]

    def _explain(self, error: RuntimeError) -> None:
        """Say which rank made a collective of this one fail, and end."""
        reason = " ".join(str(error).split()).split(" This is typically", 1)[0][:300]
        try:
            self._hear()
            for beat in range(3):  # long enough for the living to be heard
                self.store.set(str(self.rank), f"{-beat} {self.step}, in {_failed_in(error)}")
                time.sleep(1.2 * _BEAT)
                self._hear()
        except RuntimeError:
            self._end(
                f"the store of the job is gone, and with it the rank or the launcher that kept it ({reason})", error
            )
        failed = [rank for rank, (word, _) in self._heard.items() if word.startswith(_LEFT)]
        if failed:
            words = "; ".join(f"rank {rank}: {self._heard[rank][0][len(_LEFT) :].strip()}" for rank in failed)
            self._end(f"rank {failed[0]} left before its end ({words[:400] or 'without a word'})", error)
        elif silent := self._silent(2 * _BEAT):
            self._end(self._gone(silent), error)
        places = "; ".join(f"rank {rank}: {_place(word)}" for rank, (word, _) in sorted(self._heard.items())[:8])
        self._end(f"a collective failed though every rank is alive ({reason}; {places})", error)

    def _gone(self, silent: list[int]) -> str:
        names = ("rank " if len(silent) == 1 else "ranks ") + ", ".join(map(str, silent))
        last = _place(self._heard[silent[0]][0])
        return f"{names} stopped answering: killed, stuck, or on a machine that is gone; last seen at {last}"

    def _end(self, what: str, error: RuntimeError | None = None) -> None:
        """Print the sentence on the lowest rank that is left, and end this process."""
        where = _failed_in(error) if error is not None else doing(sys._current_frames().get(self._main or 0))
        silent = self._silent(2 * _BEAT)
        speaks = self.rank == min((rank for rank in range(self.size) if rank not in silent), default=self.rank)
        try:
            self.store.set(str(self.rank), _ENDED)
        except RuntimeError:  # without the store nobody knows who is left: one a machine speaks
            speaks = self.rank == 1 or os.environ.get("LOCAL_RANK") == "0"
        if sys.stderr.isatty():
            print("\x1b[?25h", end="", file=sys.stderr)  # the live view hides the cursor, and does not get to end
        if speaks:
            print(f"error: {what}; rank {self.rank} waited at {self.step}, in {where}", file=sys.stderr, flush=True)
        os._exit(1)


def doing(frame: FrameType | None) -> str:
    """What a thread is at: the collective, if it is in one, and the line of ours or megatron-core's that called it."""
    collective, place = "", ""
    while frame is not None and not place:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if "distributed" in file.parts and "torch" in file.parts:
            collective = name if name != "wrapper" else collective
        elif file.name in _EXCHANGES:
            collective = _EXCHANGES[file.name]
        elif _is_ours(file):
            place = f"{file.name}:{frame.f_lineno} {name}"
        frame = frame.f_back
    return f"{collective} of {place}" if collective and place else collective or place or "no known place"


def _failed_in(error: BaseException) -> str:
    """`doing` for where an error came from."""
    trace, frames = error.__traceback__, []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return doing(frames[-1] if frames else None)


def _is_ours(file: Path) -> bool:
    here = Path(megatron_ultralong.__file__).parent
    return ("megatron" in file.parts or here in file.parents) and file.name not in ("cpu.py", "watchdog.py")


def _place(word: str) -> str:
    """A beat without its number."""
    return word.partition(" ")[2]
