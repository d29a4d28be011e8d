"""Examine the nodes of a job before it trains: GPUs, free disk, one all-reduce over every process, and their speed.

    srun bash examples/slurm/rank.sh python examples/slurm/health.py --device gpu --folder RUN -- --config run.toml

Started once a process, with torchrun's variables. First each node by itself: nvidia-smi answers, there is a GPU for
each process, none has uncorrected memory errors or another job's memory on it, and the folder can be written and has
room. Then together: a process that does not appear within --timeout is named with its node, and the sum over all
processes must be exact. A finding is one sentence on stderr that names the node, and exit status 1. Behind -- stand
training's own words, which say the groups whose speed is measured (speed.py); a mistake in them is exit status 2.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUERY = ("index", "name", "memory.used", "ecc.errors.uncorrected.volatile.total")
MEBIBYTES_IN_USE = 4096
"""Of a GPU that nobody uses, with room for what the driver and a monitor hold."""
PAYLOAD = 16 * 2**20
"""fp32 numbers in the all-reduce: 64 MiB."""


def main() -> None:
    """Examine, and exit with 1 after a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--free-gb", type=float, default=0.0)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for every process to appear")
    words = sys.argv[1:]
    own, training = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = parser.parse_args(own)
    layout = layout_of(training) if training else None
    findings = []
    if os.environ["LOCAL_RANK"] == "0":
        findings += disk_findings(options.folder, options.free_gb)
        if options.device == "gpu":
            findings += gpu_findings(query_gpus(), int(os.environ["LOCAL_WORLD_SIZE"]))
    if not findings:
        findings += together(options.device, options.timeout, options.folder, layout)
    for finding in findings:
        print(f"error: node {node()}: {finding}", file=sys.stderr, flush=True)
    sys.stderr.flush()
    os._exit(1 if findings else 0)  # not waiting for processes that never came


def node() -> str:
    """This node, by the name that SLURM has for it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def disk_findings(folder: Path, free_gb: float) -> Iterator[str]:
    """What is wrong with the folder of the run, seen from this node."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".health_") as stream:
            stream.write(b"can be written")
            stream.flush()
    except OSError as error:
        yield f"{folder} cannot be written ({error.strerror}); RUN must be on a disk that every node sees"
        return
    free = shutil.disk_usage(folder).free / 1e9
    if free < free_gb:
        yield f"{folder} has {free:.0f} GB free, less than FREE_GB={free_gb:.0f}; make room, or lower FREE_GB"


def query_gpus() -> str | None:
    """nvidia-smi's answer, one line a GPU, or None if there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def gpu_findings(answer: str | None, wanted: int) -> Iterator[str]:
    """What is wrong with a node's GPUs.

    Args:
        answer: as `query_gpus` returns it.
        wanted: processes on this node, each with a GPU of its own.
    """
    if answer is None:
        yield "nvidia-smi does not answer; the driver may be gone. Drain the node, or set DEVICE=cpu"
        return
    rows = [[word.strip() for word in line.split(",")] for line in answer.splitlines() if line.strip()]
    if len(rows) < wanted:
        yield f"{len(rows)} GPUs for {wanted} processes; one fell off the bus, or GPUS_PER_NODE is too high"
    for index, name, used, errors in rows:
        if errors.isdigit() and int(errors) > 0:
            yield f"GPU {index} ({name}) has {errors} uncorrected memory errors; drain the node or reset the GPU"
        if used.isdigit() and int(used) > MEBIBYTES_IN_USE:
            yield f"GPU {index} ({name}) has {used} MiB in use before training; end what runs there"


def layout_of(words: list[str]) -> tuple[int, int]:
    """Tensor- and context-parallel size that training's words state; a mistake in them ends with its sentence."""
    from megatron_ultralong.cli import exit_status, parse_command_line

    with exit_status():
        parallel = parse_command_line([word for word in words if word not in ("--dry-run", "--dry_run")]).parallel
    return parallel.tensor, parallel.context


def together(device: str, timeout: int, folder: Path, layout: tuple[int, int] | None) -> Iterator[str]:
    """Meet every process and sum over all of them; report on rank 0 how long it took, and how fast each is."""
    import torch
    import torch.distributed as dist

    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    limit = datetime.timedelta(seconds=timeout)
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=rank == 0,
        timeout=limit,
        wait_for_workers=False,
    )
    store.set(f"node_of_{rank}", node())
    if rank == 0:
        missing = absent(store, size, timeout)
        if missing:
            yield f"after {timeout} s there is no word of {missing}; look at them, or drain them"
            return
    if device == "gpu":
        torch.cuda.set_device(local)
    dist.init_process_group(
        "nccl" if device == "gpu" else "gloo", store=store, rank=rank, world_size=size, timeout=limit
    )
    numbers = torch.full((PAYLOAD,), float(rank + 1), device="cuda" if device == "gpu" else "cpu")
    times = []
    for _ in range(2):  # the first also sets the connections up
        if device == "gpu":
            torch.cuda.synchronize()
        started = time.monotonic()
        numbers.fill_(float(rank + 1))
        dist.all_reduce(numbers)
        low, high = numbers.min().item(), numbers.max().item()
        times.append(time.monotonic() - started)
    if low != high or high != size * (size + 1) / 2:
        yield f"rank {rank}: the sum over {size} processes is {low} to {high}, not {size * (size + 1) / 2}"
    if rank == 0:
        nodes = sorted({store.get(f"node_of_{other}").decode() for other in range(size)})
        print(
            f"examined {size} processes on {len(nodes)} nodes ({', '.join(nodes)}): all-reduce of "
            f"{PAYLOAD * 4 // 2**20} MiB in {times[1] * 1e3:.0f} ms",
            flush=True,
        )
    if layout is not None and size % (layout[0] * layout[1]) == 0:
        say_speed(device, folder, layout, [store.get(f"node_of_{other}").decode() for other in range(size)])
    dist.barrier()


def say_speed(device: str, folder: Path, layout: tuple[int, int], nodes: list[str]) -> None:
    """Measure on every rank, print on rank 0."""
    import speed  # beside this file
    import torch
    import torch.distributed as dist

    own = torch.tensor(speed.measure(device, folder, *layout), device="cuda" if device == "gpu" else "cpu")
    rows = [torch.empty_like(own) for _ in nodes]
    dist.all_gather(rows, own)
    if dist.get_rank() == 0:
        for line in speed.report([row.tolist() for row in rows], nodes):
            print(line, flush=True)


def absent(store: Any, size: int, timeout: int) -> str:
    """The ranks that have not written their node to `store` within `timeout` seconds, in words; "" if none."""
    deadline = time.monotonic() + timeout
    missing = list(range(size))
    while missing and time.monotonic() < deadline:
        missing = [rank for rank in missing if not store.check([f"node_of_{rank}"])]
        if missing:
            time.sleep(0.1)
    if not missing:
        return ""
    nodes = sorted({rank // int(os.environ["LOCAL_WORLD_SIZE"]) for rank in missing})
    return f"{len(missing)} of {size} processes, those of {', '.join(node_names(nodes))}"


def node_names(places: list[int]) -> list[str]:
    """The names of the job's nodes at these places in its list, or "node N" where SLURM can't be asked."""
    command = ["scontrol", "show", "hostnames", os.environ.get("SLURM_STEP_NODELIST", "")]
    try:
        names = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
        return [names[place] for place in places]
    except (OSError, subprocess.SubprocessError, IndexError):
        return [f"node {place}" for place in places]


if __name__ == "__main__":
    main()
