"""Reads the windows of held-out documents that perplexity asks for, but those that were read before."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence

import orjson

from megatron_ultralong.evaluation.backends.interface import Backend
from megatron_ultralong.evaluation.benchmarks.perplexity_windows import TextWindow, Tokens, windows
from megatron_ultralong.evaluation.running.answer_log import Key, RunLog
from megatron_ultralong.evaluation.running.request import Request
from megatron_ultralong.evaluation.running.sample_files import Skip
from megatron_ultralong.evaluation.samples import TooShortError
from megatron_ultralong.progress import Progress


@contextlib.contextmanager
def progress_of(backend: Backend, description: str, total: int | None, unit: str = "tokens") -> Iterator[Progress]:
    """Progress that the writer alone shows."""
    if backend.is_writer:
        with Progress(description, total, unit) as progress:
            yield progress
    else:
        yield Progress(description, total, unit, every=float("inf"))


def plan_windows(
    request: Request, tasks: Iterable[str], lengths: Sequence[int], documents: Sequence[Tokens]
) -> tuple[list[TextWindow], list[Skip]]:
    """Every window, tasks and lengths in order, and what no document is long enough for.

    The longest length that a document has is what last_window and sliding_window take from each.
    """
    reachable = [length for length in lengths if any(len(ids) >= length for ids in documents)]
    longest = max(reachable, default=max(lengths))
    found: list[TextWindow] = []
    skipped: list[Skip] = []
    for task in tasks:
        for length in lengths:
            try:
                if length > longest:
                    raise TooShortError(f"no document has {length:,} tokens; give longer ones.")
                found += windows(task, documents, length, longest, request.windows, request.stride)
            except TooShortError as error:
                skipped.append(Skip(task, length, None, str(error)))
    return found, skipped


def window_key(window: TextWindow) -> Key:
    """Task, length, index, and a hash of what is read and what of it counts."""
    digest = hashlib.sha256(window.ids.tobytes() + orjson.dumps(window.buckets))
    return window.task, window.length, window.index, digest.hexdigest()[:32]


def read_windows(backend: Backend, found: Sequence[TextWindow], done: set[Key], log: RunLog | None) -> list[Key]:
    """Read what is not done, one after the other; every process calls it.

    Returns:
        The keys of all.
    """
    keys = []
    with progress_of(backend, "perplexity", sum(len(window.ids) for window in found)) as progress:
        for window in found:
            key = window_key(window)
            keys.append(key)
            if key not in done:
                started = time.monotonic()
                sums = window.sums(backend.losses(window.ids, window.start))
                seconds = round(time.monotonic() - started, 4)
                if log is not None:
                    task, length, index, prompt_hash = key
                    row = {"task": task, "index": index, "length": length, "prompt_hash": prompt_hash}
                    log.add_window(row | {"buckets": sums, "seconds": seconds})
            progress.advance(len(window.ids))
    return keys
