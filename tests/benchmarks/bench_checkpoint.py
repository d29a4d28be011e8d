"""A checkpoint's save and resume on eight processes (TP 2 x CP 2 x DP 2): what each writes, reads and holds.

    python tests/benchmarks/bench_checkpoint.py [--hidden 768 --layers 12 --vocabulary 32000] [--json FILE]

A model with random weights and Adam's state, in bf16 with the distributed optimizer unless --fp32, is saved and loaded
by the code that training calls. Bytes are those of each rank's files, and what the kernel counts as read; memory is the
highest resident size while saving, above that before it. What was loaded must be what was saved, bit for bit.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

RANKS = 8
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("hidden", 768), ("layers", 12), ("vocabulary", 32000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--fp32", action="store_true", help="fp32, without the distributed optimizer")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written (and deleted)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options)
    say(figures)
    if options.json:
        options.json.write_text(json.dumps(figures))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every rank, and the sizes of what they share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    with context.Pool(RANKS) as pool:
        ranks = pool.starmap(rank_of_it, [(rank, port, folder, vars(options)) for rank in range(RANKS)], chunksize=1)
    metadata = (folder / "step/.metadata").stat().st_size
    for rank, figure in enumerate(ranks):
        figure["written"] = sum(path.stat().st_size for path in (folder / "step").glob(f"__{rank}_*.distcp"))
    return {"ranks": ranks, "metadata": metadata, "total": sum(figure["written"] for figure in ranks)}


def say(figures: dict[str, Any]) -> None:
    ranks, even = figures["ranks"], figures["total"] / RANKS
    print(
        f"{figures['total'] / MB:,.0f} MB in all, {even / MB:,.1f} a rank if even; .metadata {figures['metadata']:,} B"
    )
    print("rank   written   of even   held while saving   allowed      read   of written")
    for rank, figure in enumerate(ranks):
        written, held, read = (figure[name] / MB for name in ("written", "memory", "read"))
        print(
            f"{rank:4}  {written:8.1f}  {written * MB / even:8.3f}  {held:18.1f}  {1.5 * written + 300:8.1f}"
            f"  {read:8.1f}  {read / written:11.3f}"
        )
    read = sum(figure["read"] for figure in ranks)
    print(f"read over the job: {read / figures['total']:.3f} times what was written; each rank reads .metadata too")


def rank_of_it(rank: int, port: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Save and load on one rank."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), OMP_NUM_THREADS="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    from megatron_ultralong.checkpoint.description import Description
    from megatron_ultralong.config.sections import ParallelConfig
    from megatron_ultralong.engine import adam_state, groups
    from megatron_ultralong.engine.checkpoint_writer import CheckpointWriter
    from megatron_ultralong.rope.scaling import RopeScaling
    from megatron_ultralong.training import checkpoints

    whole = options["fp32"]
    parallel = ParallelConfig(tensor=2, context=2, distributed_optimizer=not whole, device="cpu")
    groups.initialize(parallel, seed=1)
    rope = RopeScaling(base=1e4, original_length=1024)
    hf_config = configuration(options)
    model, weights, optimizer, scheduler = build(hf_config, rope, parallel)
    for held in adam_state.held(optimizer):  # values of every place's own, the same in all copies of it
        values = held.parameter.detach().view(-1) if held.main is None else held.main
        if held.main is not None:
            held.main.add_(held.main.mul(1e4).sin_(), alpha=1e-6)
        for power, moment in enumerate(held.moments.values(), 2):
            moment.copy_(values**power)
    scheduler.step(increment=3)
    if rank == 0:
        (folder / "step").mkdir()
    dist.barrier()
    gc.collect()

    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    before = status("VmRSS")
    state = checkpoints.run_state(weights, optimizer, scheduler, 3)
    writer = CheckpointWriter()
    request, failure = writer.plan(state, str(folder / "step"))
    assert failure is None
    writer.write(request)
    memory = status("VmHWM") - before
    del request, state
    run = {"processes": RANKS, "parallel": {"tensor": 2, "pipeline": 1, "context": 2}}
    if rank == 0:
        Description(hf_config, rope, "", 3, run).write(folder / "step")
    dist.barrier()

    saved = fingerprint(weights, optimizer)
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.fill_(7.0)
        for held in adam_state.held(optimizer):
            for tensor in (*held.moments.values(), *([] if held.main is None else [held.main])):
                tensor.fill_(7.0)
    before = read_so_far()
    step = checkpoints.load_run(folder / "step", weights, optimizer, scheduler, run)
    read = read_so_far() - before
    assert step == 3 and fingerprint(weights, optimizer) == saved, "what was loaded is not what was saved"
    del model
    groups.finalize()
    return {"memory": memory, "read": read}


def configuration(options: dict[str, Any]) -> dict[str, Any]:
    """A Llama's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options["hidden"],
        "intermediate_size": options["hidden"] * 3,
        "num_hidden_layers": options["layers"],
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": options["vocabulary"],
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def build(hf_config: dict[str, Any], rope: Any, parallel: Any) -> tuple[Any, Any, Any, Any]:
    """The model in DDP, the model itself, its optimizer and schedule."""
    import torch

    from megatron_ultralong.engine import mcore
    from megatron_ultralong.model.build import build_model

    half = parallel.distributed_optimizer
    weights = build_model(hf_config, rope, parallel, "bf16" if half else "fp32")
    config: Any = weights.config
    ddp = mcore.DistributedDataParallelConfig(grad_reduce_in_fp32=False, use_distributed_optimizer=half)
    module = mcore.Float16Module(config, weights) if half else weights
    model = mcore.DistributedDataParallel(config=config, ddp_config=ddp, module=module)
    precision = {"bf16": half, "params_dtype": torch.bfloat16 if half else torch.float32}
    adam = mcore.OptimizerConfig(optimizer="adam", lr=1e-4, use_distributed_optimizer=half, **precision)
    optimizer = mcore.get_megatron_optimizer(adam, [model])
    rates = {"init_lr": 0.0, "max_lr": 1e-4, "min_lr": 0.0, "lr_warmup_steps": 0, "lr_decay_steps": 10}
    decay = {"lr_decay_style": "constant", "start_wd": 0.1, "end_wd": 0.1, "wd_incr_steps": 10}
    scheduler = mcore.OptimizerParamScheduler(
        optimizer, **rates, **decay, wd_incr_style="constant", use_checkpoint_opt_param_scheduler=False
    )
    return model, weights, optimizer, scheduler


def fingerprint(weights: Any, optimizer: Any) -> list[float]:
    """Of every tensor that a checkpoint holds, two sums that change with a value or its place."""
    import torch

    from megatron_ultralong.engine import adam_state

    tensors = [parameter.detach().view(-1) for parameter in weights.parameters()]
    for held in adam_state.held(optimizer):
        tensors += [*held.moments.values(), *([] if held.main is None else [held.main])]
    found = []
    for tensor in tensors:
        bits = tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32).long()
        found += [int(bits.sum()), int((bits * torch.arange(1, len(bits) + 1)).sum())]
    return found


def status(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def read_so_far() -> int:
    """Bytes that this process has got by read(): of files; what comes over sockets comes by recv()."""
    return int(Path("/proc/self/io").read_text().splitlines()[0].split()[1])


if __name__ == "__main__":
    sys.exit(main())
