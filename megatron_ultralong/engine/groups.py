"""Process groups: torch.distributed from torchrun's environment, and megatron-core's grid over it."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import device as engine_device


def world_size_from_environment() -> int:
    """Processes that torchrun (or srun with the same variables) started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def initialize(parallel: ParallelConfig, seed: int = 1234) -> torch.device:
    """Join the job's processes, lay megatron-core's TP, CP, DP, PP grid over them, and seed its generators.

    Returns:
        The device of this process.
    """
    device = engine_device.use(parallel.device)
    timeout = datetime.timedelta(seconds=parallel.timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    lay_grid(parallel, seed)
    if device.type == "cpu":
        share_cores()
    return device


def lay_grid(parallel: ParallelConfig, seed: int, gloo: bool = True) -> None:
    """megatron-core's TP, CP, DP, PP groups over the processes that have joined, and its generators' seeds.

    Args:
        parallel: the sizes.
        seed: of the run.
        gloo: groups over gloo beside them, which a rehearsal's processes cannot make.
    """
    from megatron_ultralong.engine import mcore

    mcore.parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        context_parallel_size=parallel.context,
        hierarchical_context_parallel_sizes=hierarchy(parallel),
        distributed_timeout_minutes=max(1, parallel.timeout // 60),
        create_gloo_process_groups=gloo,
    )
    # Each pipeline stage draws its own weights; megatron-core tells tensor-parallel ranks apart itself.
    mcore.model_parallel_cuda_manual_seed(seed + 100 * mcore.parallel_state.get_pipeline_model_parallel_rank())


def hierarchy(parallel: ParallelConfig) -> list[int] | None:
    """Sizes of the context-parallel group's two levels, inner ranks (neighbours) first; None: there is one level."""
    return [parallel.ulysses, parallel.context // parallel.ulysses] if parallel.ulysses > 1 else None


def share_cores() -> None:
    """Divide the machine's cores among this machine's processes; torchrun leaves each one a single thread.

    What OMP_NUM_THREADS gives a process beyond that stays: its cores may be its own already, as under SLURM.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local > 1:
        given = os.environ.get("OMP_NUM_THREADS", "")
        torch.set_num_threads(max(1, int(given) if given.isdigit() else 1, len(os.sched_getaffinity(0)) // local))


def finalize() -> None:
    """Leave the job: every group is destroyed and its threads end, so the process can exit or start another grid.

    One of gloo's threads that lets go of a collective's last tensor while Python ends would abort the process.
    """
    from megatron_ultralong.engine import mcore

    state = mcore.parallel_state
    state.destroy_model_parallel()
    for name in [name for name, value in vars(state).items() if isinstance(value, dist.ProcessGroup)]:
        setattr(state, name, None)  # megatron-core 0.16.1 forgets two
    state._HIERARCHICAL_CONTEXT_PARALLEL_GROUPS = None  # and these
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # what holds groups in cycles


def abort() -> None:
    """Give every communicator up without waiting for its peers, as NCCL's own end does; gloo's have no such wait."""
    give_up = getattr(dist.distributed_c10d, "_abort_process_group", None)
    if give_up is not None and dist.is_initialized() and dist.get_backend() == "nccl":
        give_up()


@contextlib.contextmanager
def single_process(parallel: ParallelConfig | None = None) -> Iterator[torch.device]:
    """A grid of this one process, for converters and tests; does nothing where one is already laid."""
    if dist.is_initialized():
        yield engine_device.use((parallel or ParallelConfig()).device)
        return
    device = initialize(parallel or ParallelConfig(device="cpu"))
    try:
        yield device
    finally:
        finalize()
