"""What a worker does beside `tokenize_corpus`, which test_tokenize.py covers."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from megatron_ultralong.data.tokenizer.encoders import Recipe
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.readers import Reading
from megatron_ultralong.data.tokenizing.worker import Job, Worker


@pytest.mark.parametrize(
    ("workers", "processes", "left", "cores"),
    [(8, 8, 100, 1), (8, 8, 3, 2), (8, 8, 1, 8), (8, 2, 2, 4), (3, 2, 2, 1), (2, 1, 5, 2), (2, 2, 0, 2)],
)
def test_the_cores_of_workers_without_a_shard_are_used_by_the_others(workers, processes, left, cores):
    job = Job(Reading(Fields(), "text"), False, None, Recipe("bytes", b""), False, None, processes, workers)
    worker = Worker(job, None, SimpleNamespace(value=left, get_lock=nullcontext), threading.Event())
    assert worker._cores() == cores
