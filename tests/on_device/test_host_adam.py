"""Adam on the host takes the steps that Adam on the device takes."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import _gpu_run
import pytest
import torch
from torch import Tensor

from megatron_ultralong.engine import adam_state, host_adam, host_link
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine.replacing import replaced
from megatron_ultralong.planning.memory import predict
from megatron_ultralong.planning.memory_parts import standing_memory
from megatron_ultralong.training import measured_memory
from megatron_ultralong.training.setup import Run
from megatron_ultralong.training.step import train_step
from tests.on_device.asynchronous import LateEvent, LateStream, late
from tests.on_device.device_process import DeviceProcess
from tests.on_device.test_modules import SIZES
from tests.on_device.test_steps import filled

STEPS = 3
CASES = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16", "clip": 0.0},
    "bf16 gradients": {"precision": "bf16", "wide": False},
    "fp32, distributed optimizer": {"precision": "fp32", "distributed_optimizer": True},
    "bf16 gradients, distributed optimizer": {"precision": "bf16", "wide": False, "distributed_optimizer": True},
}
State = dict[str, list[Tensor]]


def made(
    fraction: float, precision: Any, wide: bool = True, clip: float = 0.1, layers: int = 2, **parallel: Any
) -> Run:
    device: Any = "gpu" if engine_device.current().type == "cuda" else "cpu"
    config = _gpu_run.configuration(64, precision=precision, device=device, **parallel)
    optimizer = dataclasses.replace(config.optimizer, offload_fraction=fraction, learning_rate=1e-2, clip_grad=clip)
    train = dataclasses.replace(config.train, grad_reduce_in_fp32=wide)
    config = dataclasses.replace(config, optimizer=optimizer, train=train)
    return _gpu_run.make(config, {**_gpu_run.LLAMA_8B, "num_hidden_layers": layers, **SIZES["cpu"]}, fill=filled)


def state(run: Run) -> State:
    """Weights, moments and main weights by parameter."""
    names = {id(parameter): name for name, parameter in run.weights.named_parameters()}
    return {
        names[id(held.parameter)]: [
            x.clone() for x in (held.parameter.detach(), *held.moments.values(), held.main) if x is not None
        ]
        for held in adam_state.held(run.optimizer)
    }


def stepped(fraction: float, steps: int = STEPS, **case: Any) -> tuple[list[tuple[float, float]], State, float]:
    """Numbers of each step, the state after all, and the share of elements that is on the host."""
    with replaced(host_adam, "PIECE", 1024):  # parameters of several pieces, of one and of less
        run = made(fraction, **case)
        results = [train_step(run, number) for number in range(steps)]
    run.ahead.wait()
    gone = sum(len(one.weights) for host in host_adam.of(run.optimizer) for one in host.hosted)
    share = gone / sum(parameter.numel() for parameter in run.weights.parameters())
    return [(result.loss, result.grad_norm) for result in results], state(run), share


def assert_equal(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensors in wanted.items():
        assert all(torch.equal(a, b) for a, b in zip(found[name], tensors, strict=True)), name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_share_on_the_host_gives_the_same_bits(cpu_process: DeviceProcess, case: dict[str, Any]) -> None:
    numbers, wanted, none = cpu_process.run(stepped, 0.0, **case)
    assert none == 0 and all(norm > 0.1 for _, norm in numbers)  # which is clipped, where anything is
    assert len({loss for loss, _ in numbers}) == STEPS
    for fraction in (0.5, 1.0):
        also, found, share = cpu_process.run(stepped, fraction, **case)
        assert also == numbers
        assert_equal(found, wanted)
        assert share == 1.0 if fraction == 1.0 else 0.4 < share <= 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_on_a_gpu_it_is_the_devices_to_a_rounding(gpu_process: DeviceProcess, case: dict[str, Any]) -> None:
    """Of one step, whose gradients are the same; and the streams forget nothing: a second time gives the same bits."""
    numbers, wanted, _ = gpu_process.run(stepped, 0.0, 1, **case)
    for fraction in (0.5, 1.0):
        also, found, _ = gpu_process.run(stepped, fraction, 1, **case)
        assert also == pytest.approx(numbers, rel=1e-6)
        for name, tensors in wanted.items():
            for ours, theirs in zip(found[name], tensors, strict=True):
                eps = torch.finfo(theirs.dtype).eps
                torch.testing.assert_close(ours, theirs, rtol=4 * eps, atol=1e-9, msg=name)
        first, again = (gpu_process.run(stepped, fraction, STEPS, **case) for _ in range(2))
        assert first[0] == again[0]
        assert_equal(first[1], again[1])


def stepped_late(precision: str, wide: bool) -> tuple[State, State]:
    """One step with plain copies and one with late streams, from the same gradients."""
    found = []
    for streams in (False, True):
        run = made(1.0, precision, wide)
        train_step(run, 0)
        run.ahead.wait()
        (host,) = host_adam.of(run.optimizer)
        with replaced(host_adam, "PIECE", 1024):
            if not streams:
                host.step(0.5)
            else:
                _step_late(host)
        found.append(state(run))
    return found[0], found[1]


def _step_late(host: host_adam.HostAdam) -> None:
    """As a GPU might: gradients are not there yet as the step begins, and weights are still to be read."""
    with late() as computing:
        host.link = host_link.Link(torch.device("cuda"))
        before = [one.weights.clone() for one in host.hosted]
        gradients = [one.gradient.clone() for one in host.hosted]
        read: list[bool] = []

        def backward(one: host_adam.Hosted, weights: Tensor, gradient: Tensor) -> None:
            read.append(torch.equal(one.weights, weights))
            one.gradient.copy_(gradient)

        for one, weights, gradient in zip(host.hosted, before, gradients, strict=True):
            one.gradient.fill_(torch.nan)
            computing.issue(lambda one=one, w=weights, g=gradient: backward(one, w, g))  # type: ignore[misc]
        host.step(0.5)
        computing.run(computing.issued)
        assert read and all(read), "weights were overwritten before they were read"


@pytest.mark.parametrize(("precision", "wide"), [("fp32", True), ("bf16", True), ("bf16", False)])
def test_nothing_is_read_or_overwritten_too_early(cpu_process: DeviceProcess, precision: str, wide: bool) -> None:
    plain, streamed = cpu_process.run(stepped_late, precision, wide)
    assert_equal(streamed, plain)


@pytest.mark.parametrize(
    ("late_one", "real"), [(LateStream, torch.cuda.Stream), (LateEvent, torch.cuda.Event)], ids=["stream", "event"]
)
def test_late_streams_are_called_as_pytorchs(late_one: type, real: type) -> None:
    """Those of CUDA take the same arguments; in a build without it they are there, and cannot be made."""
    for name in ("wait_stream", "wait_event", "record", "synchronize"):
        if ours := getattr(late_one, name, None):
            taken = list(inspect.signature(ours).parameters)
            assert list(inspect.signature(getattr(real, name)).parameters) == taken


def skipped() -> tuple[State, State, list[int]]:
    """The state before and after a step that is not finite, and updates counted."""
    run = made(1.0, "bf16")
    train_step(run, 0)
    before = state(run)
    with replaced(run.optimizer, "get_grad_norm", lambda: float("nan")):
        assert not train_step(run, 1).updated
    run.ahead.wait()
    return before, state(run), [host.steps for host in host_adam.of(run.optimizer)]


def test_a_step_that_is_skipped_changes_nothing(cpu_process: DeviceProcess) -> None:
    before, after, steps = cpu_process.run(skipped)
    assert_equal(after, before)
    assert steps == [1]


def measured_and_planned(fraction: float) -> list[tuple[int, int]]:
    """Bytes on the device and on the host that stand, and the step's peak beyond what stands; measured, planned."""
    run = made(fraction, "bf16", wide=False, layers=12, recompute="full")
    train_step(run, 0)
    with measured_memory.measured(run) as memory:
        train_step(run, 1)
    run.ahead.wait()
    planned = predict(run.config, run.description.hf_config, 1, 0, False)
    host = sum(x.nbytes for one in host_adam.of(run.optimizer) for x in one.tensors())
    return [(memory.optimizer, planned.optimizer), (host, planned.host), (memory.peak, planned.peak)]


def test_memory_is_what_was_planned(cpu_process: DeviceProcess) -> None:
    """On the device, where bf16 gradients are widened all at once, the update is the highest moment; then it is not."""
    found = {fraction: cpu_process.run(measured_and_planned, fraction) for fraction in (0.0, 1.0)}
    for pairs in found.values():
        for ours, planned in pairs:
            assert ours == pytest.approx(planned, rel=0.1)
    (state_bytes, _), (none, _), (peak, _) = found[0.0]
    assert none == 0 and found[1.0][0][0] == 0 and found[1.0][1][0] > state_bytes
    assert found[1.0][2][0] < 0.7 * peak


def test_a_plan_knows_the_size_of_a_piece() -> None:
    assert standing_memory.PIECE == host_adam.PIECE
