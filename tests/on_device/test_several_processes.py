"""Two processes over a real process group: gloo on the CPU; NCCL on one GPU, where NCCL lets two ranks share it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.context_parallel.ring import ring_attention
from tests.context_parallel.ring_ranks import with_gradients
from tests.on_device.test_long_rings import assert_as_near_as_flash, drawn
from tests.ranks import leave

SIZE, SECONDS = 2, 120


def attend(rank: int, device: str, length: int, store: str, pipe: Any) -> None:
    """Send back this rank's share of the output and of every gradient, or what went wrong."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=dist.FileStore(store, SIZE),
            rank=rank,
            world_size=SIZE,
            timeout=datetime.timedelta(seconds=SECONDS // 2),
        )
        shares = [zigzag.shard(x, rank, SIZE) for x in drawn(device, length)]
        found = with_gradients(lambda *qkv: ring_attention(*qkv, group=dist.group.WORLD), *shares)
        pipe.send([x.float().cpu().numpy() for x in found])
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
    leave()


@pytest.mark.gloo
@pytest.mark.parametrize(("device", "length"), [("cpu", 256), pytest.param("cuda", 32 * 1024, marks=pytest.mark.gpu)])
def test_two_processes_attend_as_one(device: str, length: int, tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    pipes = [context.Pipe() for _ in range(SIZE)]
    store = str(tmp_path / "store")
    processes = [context.Process(target=attend, args=(r, device, length, store, pipes[r][1])) for r in range(SIZE)]
    for process in processes:
        process.start()
    try:
        answers = [here.recv() if here.poll(SECONDS) else "no answer" for here, _ in pipes]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    problems = [answer for answer in answers if isinstance(answer, str)]
    if any("Duplicate GPU" in problem for problem in problems):
        pytest.skip("NCCL refuses two ranks on one GPU: Duplicate GPU detected")
    assert not problems, problems
    shares = [[torch.from_numpy(x) for x in answer] for answer in answers]
    whole = [zigzag.unshard(list(parts)) for parts in zip(*shares, strict=True)]
    assert_as_near_as_flash([x.to(device) for x in whole], drawn(device, length))
