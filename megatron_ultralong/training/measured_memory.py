"""Memory of one step by part, measured, beside what planning/memory.py computes for it.

On a GPU the numbers are PyTorch's allocator's and cost nothing. A CPU has no such counters: there a dispatch mode
counts the storages that operations make while they live (kernels' own scratch space is not seen), which makes
the measured step slower.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_ultralong.context_parallel.core_attention import RingCoreAttention, TECoreAttention
from megatron_ultralong.engine import mcore
from megatron_ultralong.engine.device import restart_peak_memory
from megatron_ultralong.planning.memory import StepMemory, predict
from megatron_ultralong.training.setup import Run

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def measured(run: Run, counted: Storages | None = None) -> Iterator[StepMemory]:
    """Measure a step taken within, after at least one before it, which makes Adam's state.

    The result is filled in at the end.

    Args:
        run: whose step it is.
        counted: what counts already, such as a rehearsal's; None: the device's own counters.
    """
    memory, meter = StepMemory(), counted or (_Gpu(run.device) if run.device.type == "cuda" else Storages())
    hooks = [run.weights.register_forward_hook(lambda *_: _raise(memory, "activations", meter.live()))]
    for module in run.weights.modules():
        if isinstance(module, (RingCoreAttention, TECoreAttention)):
            hooks.append(module.register_forward_pre_hook(lambda *_: meter.mark()))
            hooks.append(module.register_forward_hook(lambda *_: _raise(memory, "attention", meter.since_mark())))
    head_and_loss: Any = run.weights._postprocess

    def postprocess(*arguments: Any, **keywords: Any) -> Any:
        meter.mark()
        result = head_and_loss(*arguments, **keywords)
        _raise(memory, "loss", meter.since_mark())
        return result

    run.weights._postprocess = postprocess  # type: ignore[assignment]
    before = _bytes(_buffers(run))
    try:
        with contextlib.nullcontext() if counted is not None else meter:
            meter.begin()
            yield memory
            memory.peak = meter.highest()
    finally:
        del run.weights._postprocess
        for hook in hooks:
            hook.remove()
    memory.weights, memory.gradients, memory.optimizer = (_bytes(tensors) for tensors in standing(run).values())
    memory.buffers = _bytes(_buffers(run))
    made = memory.buffers - before  # within the step, by a first one
    memory.peak -= made
    memory.activations -= made


def report(run: Run, own: StepMemory) -> StepMemory:
    """Log the highest of each part over all ranks, measured and predicted; returns the measured one."""
    stage = mcore.parallel_state.get_pipeline_model_parallel_rank()
    gpu = run.device.type == "cuda"
    wanted = predict(run.config, run.description.hf_config, dist.get_world_size(), stage, gpu)
    names = [*(field.name for field in dataclasses.fields(StepMemory)), "total"]
    pair = [[getattr(one, name) for name in names] for one in (own, wanted)]
    values = torch.tensor(pair, dtype=torch.int64, device=run.device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    found, planned = values.tolist()
    rows = [f"  {n:<12} {a / 2**20:14,.3f} {b / 2**20:14,.3f}" for n, a, b in zip(names, found, planned, strict=True)]
    heading = f"  {'MiB':<12} {'measured':>14} {'predicted':>14}"
    logger.info("memory, the highest of %d ranks:\n%s", dist.get_world_size(), "\n".join([heading, *rows]))
    return StepMemory(*found[:-1])


def _raise(memory: StepMemory, name: str, value: int) -> None:
    """Note `value` if it is the highest so far."""
    setattr(memory, name, max(getattr(memory, name), value))


def standing(run: Run) -> dict[str, list[Tensor]]:
    """Tensors that are there between steps: weights, gradients and what the optimizer holds beside them."""
    model: Any = run.model
    weights: list[Tensor] = list(run.weights.parameters())
    gradients = [buffer.grad_data for buffer in [*model.buffers, *model.expert_parallel_buffers]]
    optimizers = getattr(run.optimizer, "chained_optimizers", [run.optimizer])
    held = [value for one in optimizers for value in tree_leaves(list(one.optimizer.state.values()))]
    held += [parameter for one in optimizers for group in one.optimizer.param_groups for parameter in group["params"]]
    own = {storage_of(tensor) for tensor in weights}
    state = [tensor for tensor in held if isinstance(tensor, Tensor) and storage_of(tensor) not in own]
    return {"weights": weights, "gradients": gradients, "optimizer": state}


def _buffers(run: Run) -> list[Tensor]:
    """What the first step makes and later ones find: the gather buffer, the table of positions."""
    table = run.weights.rotary_pos_emb.table  # type: ignore[union-attr]
    return [*mcore.parallel_state.get_global_memory_buffer().buffer.values(), *([] if table is None else [table])]


def storage_of(tensor: Tensor) -> int:
    """The same number for all tensors that share memory, of those that exist at one time."""
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Of the tensors' storages, each once."""
    return sum({storage_of(x): x.untyped_storage().nbytes() for x in tensors}.values())


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among an operator's arguments or results, lists and mappings of them included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


class _Gpu:
    """PyTorch's allocator's counters."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.top = device, 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self) -> None:
        """Count from here."""
        restart_peak_memory(self.device)
        self.base = self.marked = torch.cuda.memory_allocated(self.device)

    def live(self) -> int:
        """Bytes more than at the beginning."""
        return torch.cuda.memory_allocated(self.device) - self.base

    def highest(self) -> int:
        """The most that `live` was."""
        return max(self.top, torch.cuda.max_memory_allocated(self.device)) - self.base

    def mark(self) -> None:
        """Begin a stretch."""
        self.top = max(self.top, torch.cuda.max_memory_allocated(self.device))
        restart_peak_memory(self.device)
        self.marked = torch.cuda.memory_allocated(self.device)

    def since_mark(self) -> int:
        """The most beyond what was held when the stretch began."""
        return torch.cuda.max_memory_allocated(self.device) - self.marked


class Storages(TorchDispatchMode):
    """Counts storages that operations return, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.base = self.top = self.marked = self.stretch = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            if storage_of(tensor) not in self.known:
                self._know(tensor.untyped_storage())  # made before: an operation that returns it again makes nothing
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors((result,)):
            if storage_of(tensor) not in self.known:
                self._count(tensor.untyped_storage())
        return result

    def _know(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage._cdata)
        weakref.finalize(storage, self.known.discard, storage._cdata)  # its place may be another's then

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.top, self.stretch = max(self.top, self.now), max(self.stretch, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def begin(self) -> None:
        """Count from here."""
        self.base = self.top = self.marked = self.stretch = self.now

    def live(self) -> int:
        """Bytes more than at the beginning."""
        return self.now - self.base

    def highest(self) -> int:
        """The most that `live` was."""
        return self.top - self.base

    def mark(self) -> None:
        """Begin a stretch."""
        self.marked = self.stretch = self.now

    def since_mark(self) -> int:
        """The most beyond what was held when the stretch began."""
        return self.stretch - self.marked
