"""A rank that is killed, or stops answering, in the middle of a ring: the others end, and say which rank and step."""

import os
import re
import signal
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.context_parallel.ring import ring_attention

TIMEOUT = 4.0  # seconds, the group's
SIZE, LOST = 4, 2


def attend_for_ever(rank, store, pipe, how):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, SIZE),
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=TIMEOUT),
    )
    q, k, v = (torch.randn(1, 128, heads, 16, requires_grad=True) for heads in (4, 2, 2))
    ring_attention(q, k, v, group=dist.group.WORLD).sum().backward()
    if rank == LOST:
        threading.Timer(0.5, os.kill, (os.getpid(), how)).start()
    pipe.send("begun")
    try:
        while True:
            ring_attention(q, k, v, group=dist.group.WORLD).sum().backward()
    except Exception as error:
        pipe.send((time.time(), type(error).__name__, str(error)))
        raise SystemExit(7) from error


@pytest.mark.gloo
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_others_end_and_name_the_rank_and_step(how, tmp_path):
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["megatron_ultralong.context_parallel.ring"])
    pipes = [context.Pipe() for _ in range(SIZE)]
    processes = [
        context.Process(target=attend_for_ever, args=(rank, str(tmp_path / "store"), pipes[rank][1], how))
        for rank in range(SIZE)
    ]
    for process in processes:
        process.start()
    try:
        for here, _ in pipes:
            assert here.poll(60) and here.recv() == "begun"
        begun = time.time()
        said = {}
        for rank in set(range(SIZE)) - {LOST}:
            assert pipes[rank][0].poll(60), f"rank {rank} hangs"
            ended, kind, said[rank] = pipes[rank][0].recv()
            assert kind == "LostPeerError"
            assert ended - begun < TIMEOUT + 6  # half a second until the loss, and a slow machine
            processes[rank].join(10)
            assert processes[rank].exitcode == 7
        for rank, text in said.items():
            assert f"on context-parallel rank {rank} (process {rank})" in text
            assert re.search(r"(keys and values|gradients of keys and values) after step [1-4] of 4", text), text
        assert "from context-parallel rank 2 (process 2)" in said[1]  # who waits for it
    finally:
        for process in processes:
            process.kill()
            process.join(10)
