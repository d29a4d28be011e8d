"""Where a process is, by Python's stacks: the collective, and the line of ours or megatron-core's that called it.

Nothing is wrapped and the hot path pays nothing. On a GPU backward runs in a thread of autograd's own, which Python
did not start: where one of those is at work, that is the place, and the main thread only waits for it.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import megatron_ultralong
from megatron_ultralong.context_parallel import ring_exchange

NOWHERE = "no known place"
_EXCHANGES = {  # files whose waits have no collective's name on the stack
    Path(ring_exchange.__file__).name: "the exchange of keys and values",
    "p2p_communication.py": "a send or receive between pipeline stages",
}
_WATCHERS = ("cpu.py", "watchdog.py", "roll_call.py", "whereabouts.py")


def of_process() -> str:
    """What this process is at: in the main thread, or in a thread of autograd's that computes for it."""
    started = {thread.ident for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}
    frames, main = sys._current_frames(), threading.main_thread().ident or 0
    frames.pop(threading.get_ident(), None)  # this very frame, whose locals would hold themselves, and all tensors
    places = {thread: of_frame(frame) for thread, frame in frames.items() if thread == main or thread not in started}
    frames.clear()
    backward = [place for thread, place in places.items() if thread != main and place != NOWHERE]
    return f"{backward[0]} (backward)" if backward else places.get(main, NOWHERE)


def of_frame(frame: FrameType | None) -> str:
    """What a thread is at: the collective, if it is in one, and the line of ours or megatron-core's that called it."""
    return _describe(_callers(frame))


def of_error(error: BaseException) -> str:
    """`of_frame` for where an error came from, by its traceback: a generator's frame has lost its caller by then."""
    passed = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return _describe(reversed(passed))


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _describe(frames: Iterable[FrameType]) -> str:
    """Frames, the innermost first, in words."""
    collective, place = "", ""
    for frame in frames:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if "distributed" in file.parts and "torch" in file.parts:
            collective = name if name != "wrapper" else collective
        elif file.name in _EXCHANGES:
            collective = _EXCHANGES[file.name]
        elif _is_ours(file):
            place = f"{file.name}:{frame.f_lineno} {name}"
            break
    return f"{collective} of {place}" if collective and place else collective or place or NOWHERE


def _is_ours(file: Path) -> bool:
    here = Path(megatron_ultralong.__file__).parent
    return ("megatron" in file.parts or here in file.parents) and file.name not in _WATCHERS
