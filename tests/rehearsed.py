"""One rank's real training step of any job, on tensors without values, counted by part: no GPU and no other rank.

The model, megatron-core's DDP, its schedule, the loss and the optimizer are the run's own, under a `fake` group.
Assumed are values alone: every label counts, sums are 1 (so that the step is taken), and as PyTorch does on a GPU,
RMSNorm is one operator. Which part an operator of backward belongs to is told by the sequence number of its autograd
node, which lies in the stretch of numbers that its part took in forward.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ultralong.config.sections import ParallelConfig, RunConfig
from megatron_ultralong.data.reading.dataset import Sample
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine import groups, mcore
from megatron_ultralong.model import build
from megatron_ultralong.model.loss import LossOptions
from megatron_ultralong.rope import config_json
from megatron_ultralong.training import optimizing, setup
from megatron_ultralong.training import step as step_of_a_run
from megatron_ultralong.training.step import train_step
from tests.operators import Operators, asker, counting

PARTS = {
    "Rotary": "table of positions",
    "LanguageModelEmbedding": "embedding",
    "RMSNorm": "norms",
    "RotarySelfAttention": "heads, rotation",
    "ColumnParallelLinear": "linear layers",
    "RowParallelLinear": "linear layers",
    "RingCoreAttention": "attention",
    "MLP": "SwiGLU",
    "TransformerLayer": "residual stream",
    "SelectiveLayer": "residual stream",
}
GRADIENTS, REST = "gradients into DDP's buffers", "the rest of the step"
HEAD = "head and loss"


class Parts:
    """Tells `operators` which part of the step is running."""

    def __init__(self, operators: Operators) -> None:
        self.operators, self.stack = operators, [REST]
        self.numbers, self.names = [0], [REST]
        type(operators).part = property(lambda _: self.now())

    def now(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None or len(self.stack) > 1:  # forward, or a forward again
            return self.stack[-1]
        if node.name() == "torch::autograd::AccumulateGrad":
            return GRADIENTS
        return self.names[bisect.bisect_right(self.numbers, node._sequence_nr()) - 1]

    def enter(self, name: str) -> None:
        self.stack.append(name)
        self._note()

    def leave(self) -> None:
        self.stack.pop()
        self._note()

    def _note(self) -> None:
        """From the next autograd node on, nodes are of the part that is on top."""
        number = torch.autograd._get_sequence_nr()
        if number == self.numbers[-1]:
            self.names[-1] = self.stack[-1]
        elif number > self.numbers[-1]:
            self.numbers.append(number)
            self.names.append(self.stack[-1])

    def watch(self, model: torch.nn.Module) -> None:
        """Hooks on the modules that PARTS names, and around the head."""
        for module in model.modules():
            name = PARTS.get(type(module).__name__)
            if name is not None and module is not getattr(model, "output_layer", None):  # the loss has its weight alone
                module.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
                module.register_forward_hook(lambda *_: self.leave(), always_call=True)

    def around(self, name: str, function: Any) -> Any:
        """`function`, counted as `name`."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.enter(name)
            try:
                return function(*arguments, **keywords)
            finally:
                self.leave()

        return call


class _FusedNorm(torch.autograd.Function):
    """F.rms_norm as on a GPU: an operator each way, which keeps its input and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        Operators.count("_fused_rms_norm")
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        Operators.count("_fused_rms_norm_backward")
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _noted(to_host: Any) -> Any:
    """A copy to the host, which on a GPU waits for it; what lies on the host has values."""

    def call(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            assert Operators.active is not None
            Operators.active.synchronisations.append(asker())
        return to_host(tensor)

    return call


def _compiled(name: str, shape_of: Any) -> Any:
    """In the place of a function that torch.compile makes one kernel of on a GPU."""

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        Operators.count(name)
        return shape_of(*tensors)

    return call


class Samples:
    """Samples with a label everywhere and documents of one length."""

    first = 0

    def __init__(self, length: int, document: int) -> None:
        self.bounds = np.array([*range(0, length, document), length], dtype=np.int32)

    def read(self, sample: int, spans: Any) -> Sample:
        held = np.concatenate([np.arange(*span) for span in spans])
        return Sample(held % 7, held % 7, np.ones(len(held), np.float32), held, self.bounds)


@contextlib.contextmanager
def rank_of(parallel: ParallelConfig, world: int, rank: int) -> Iterator[None]:
    """This process as one rank of a job of `world`."""
    engine_device.use("cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        mcore.parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            context_parallel_size=parallel.context,
            hierarchical_context_parallel_sizes=groups.hierarchy(parallel),
            create_gloo_process_groups=False,
        )
        mcore.model_parallel_cuda_manual_seed(1)
        yield
    finally:
        groups.finalize()


def _with_values(function: Any) -> Any:
    """A function between arrays and tensors of the host, which keep their values."""

    def call(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments)

    return call


def _alike(found: list[Any], own: Any, group: Any = None) -> None:
    """As if every rank had said the same."""
    found[:] = [own] * len(found)


@contextlib.contextmanager
def values_assumed() -> Iterator[None]:
    """What cannot be had of tensors without values, or is other than on a GPU."""
    tracker, norm, cast = (
        mcore.megatron_random.CudaRNGStatesTracker,
        torch.nn.functional.rms_norm,
        torch.nn.Module.bfloat16,
    )
    fork, optimizer = tracker.fork, mcore.get_megatron_optimizer
    mcore.get_megatron_optimizer = functools.partial(optimizer, use_gloo_process_groups=False)
    gather = dist.all_gather_object
    dist.all_gather_object = _alike
    from_numpy, to_numpy = torch.from_numpy, torch.Tensor.numpy
    torch.from_numpy, torch.Tensor.numpy = _with_values(from_numpy), _with_values(to_numpy)
    tracker.fork = lambda *_: contextlib.nullcontext()  # it compares states
    torch.nn.functional.rms_norm = lambda x, shape, weight=None, eps=None: _FusedNorm.apply(x, weight)
    swiglu = mcore.fused_bias_swiglu.swiglu, mcore.fused_bias_swiglu.swiglu_back
    mcore.fused_bias_swiglu.swiglu = _compiled("swiglu", lambda y: y.new_empty((*y.shape[:-1], y.shape[-1] // 2)))
    mcore.fused_bias_swiglu.swiglu_back = _compiled("swiglu_back", lambda g, y: torch.empty_like(y))
    to_host = torch.Tensor.cpu
    torch.Tensor.cpu = _noted(to_host)
    torch.nn.Module.bfloat16 = lambda self: self  # the parameters are in bf16 already
    try:
        yield
    finally:
        mcore.get_megatron_optimizer, dist.all_gather_object, torch.from_numpy = optimizer, gather, from_numpy
        torch.Tensor.numpy, torch.Tensor.cpu = to_numpy, to_host
        mcore.fused_bias_swiglu.swiglu, mcore.fused_bias_swiglu.swiglu_back = swiglu
        tracker.fork, torch.nn.functional.rms_norm, torch.nn.Module.bfloat16 = fork, norm, cast


def step(config: RunConfig, hf_config: dict[str, Any], world: int, rank: int = 0, document: int = 0) -> Operators:
    """The second training step of `rank` in a job of `world`; the first makes Adam's state and the positions' table."""
    with rank_of(config.parallel, world, rank), values_assumed(), counting() as operators:
        parts = Parts(operators)
        loss = LossOptions(config.train.loss_chunk, config.train.z_loss)
        rope = config_json.read(hf_config)
        weights = build.build_model(
            hf_config,
            rope,
            config.parallel,
            config.train.precision,
            config.rope.angles,
            loss,
            optimizing.fusions(config, torch.device("cpu")),
        )
        model, optimizer = optimizing.optimize(weights, config)
        scheduler = optimizing.schedule(optimizer, config)
        data = Samples(config.padded_length, document or config.padded_length)
        description = types.SimpleNamespace(hf_config=hf_config)
        run = setup.Run(
            config, model, weights, optimizer, scheduler, data, description, 0, 0, None, torch.device("cpu")
        )
        parts.watch(weights)
        weights._postprocess = parts.around(HEAD, weights._postprocess)
        for name in ("prepare_grads", "get_grad_norm", "step_with_ready_grads"):
            setattr(optimizer, name, parts.around("optimizer", getattr(optimizer, name)))
        reduce = step_of_a_run._reduce
        step_of_a_run._reduce = lambda *a: (reduce(*a), (1.0, 1, 1, True))[1]
        train_step(run, 0)
        operators.by_part.clear()
        operators.synchronisations.clear()
        train_step(run, 1)
        step_of_a_run._reduce = reduce
    return operators
