"""Whole training steps on a device: as the CPU's, and going on from a checkpoint as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _gpu_run
import pytest
import torch

from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine.checkpoint_writer import CheckpointWriter
from megatron_ultralong.training import checkpoints
from megatron_ultralong.training.setup import Run
from megatron_ultralong.training.step import train_step
from tests.on_device.device_process import DeviceProcess
from tests.on_device.test_modules import SIZES

STEPS = 3
Numbers = list[tuple[float, float]]


def filled(model: torch.nn.Module) -> None:
    """The same weights on every device."""
    generator = torch.Generator().manual_seed(6)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        parameter.data.copy_(drawn)


def made(length: int, precision: Any, sizes: dict[str, int], **parallel: Any) -> Run:
    kind = "gpu" if engine_device.current().type == "cuda" else "cpu"
    config = _gpu_run.configuration(length, precision=precision, device=kind, **parallel)
    return _gpu_run.make(config, {**_gpu_run.LLAMA_8B, "num_hidden_layers": 2, **sizes}, fill=filled)


def taken(run: Run, steps: range) -> Numbers:
    """Loss and gradient norm of each step."""
    results = [train_step(run, step) for step in steps]
    run.ahead.wait()
    return [(result.loss, result.grad_norm) for result in results]


def trained(length: int, precision: Any, sizes: dict[str, int], **parallel: Any) -> Numbers:
    return taken(made(length, precision, sizes, **parallel), range(STEPS))


@pytest.mark.parametrize("kind", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_steps_in_fp32_are_the_cpus(cpu_process: DeviceProcess, kind: str, request: pytest.FixtureRequest) -> None:
    """For the CPU itself: two processes give the same bits."""
    wanted = cpu_process.run(trained, 128, "fp32", SIZES["cpu"])
    if kind == "cpu":
        with DeviceProcess("cpu") as other:
            assert other.run(trained, 128, "fp32", SIZES["cpu"]) == wanted
        return
    found = request.getfixturevalue("gpu_process").run(trained, 128, "fp32", SIZES["cpu"])
    assert found == [pytest.approx(pair, rel=1e-5) for pair in wanted]


def test_steps_in_bf16_are_as_near_fp32_as_the_cpus(device_process: DeviceProcess, cpu_process: DeviceProcess) -> None:
    """At most twice as far as the CPU's steps in bf16, and a rounding of bf16."""
    exact, allowed = (cpu_process.run(trained, 256, precision, SIZES["cpu"]) for precision in ("fp32", "bf16"))
    found = device_process.run(trained, 256, "bf16", SIZES["cpu"])
    floor = torch.finfo(torch.bfloat16).eps
    for ours, theirs, right in zip(found, allowed, exact, strict=True):
        for a, b, c in zip(ours, theirs, right, strict=True):
            assert abs(a - c) <= 2 * abs(b - c) + floor * abs(c)


def saved(folder: str, length: int, sizes: dict[str, int], **parallel: Any) -> Numbers:
    """Numbers of the steps after one at which the run is saved."""
    run = made(length, "bf16", sizes, **parallel)
    taken(run, range(1))
    run.gather_weights()
    Path(folder).mkdir()
    writer = CheckpointWriter()
    state = checkpoints.run_state(run.weights, run.optimizer, run.scheduler, 1)
    request, failure = writer.plan(state, folder)
    assert failure is None
    writer.write(request)
    run.description.write(Path(folder))
    return taken(run, range(1, 1 + STEPS))


def resumed(folder: str, length: int, sizes: dict[str, int], **parallel: Any) -> Numbers:
    """Numbers of the same steps of another run, which loads the checkpoint."""
    run = made(length, "bf16", sizes, **parallel)
    done = checkpoints.load_run(Path(folder), run.weights, run.optimizer, run.scheduler, run.description.run)
    return taken(run, range(done, done + STEPS))


@pytest.mark.parametrize("distributed", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit(device_process: DeviceProcess, tmp_path: Path, distributed: bool) -> None:
    """With PyTorch's deterministic algorithms, as the process has them."""
    kind, folder = device_process.kind, str(tmp_path / "step_000001")
    length = {"cpu": 128, "gpu": 4096}[kind]
    wanted = device_process.run(saved, folder, length, SIZES[kind], distributed_optimizer=distributed)
    found = device_process.run(resumed, folder, length, SIZES[kind], distributed_optimizer=distributed)
    assert found == wanted and len({loss for loss, _ in found}) == STEPS
