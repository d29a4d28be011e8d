"""A process a device, started when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.on_device.device_process import DeviceProcess


@pytest.fixture(scope="session")
def cpu_process() -> Iterator[DeviceProcess]:
    with DeviceProcess("cpu") as process:
        yield process


@pytest.fixture(scope="session")
def gpu_process() -> Iterator[DeviceProcess]:
    with DeviceProcess("gpu") as process:
        yield process


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device_process(request: pytest.FixtureRequest) -> DeviceProcess:
    """Of either device; a test that asks for it runs for both."""
    process: DeviceProcess = request.getfixturevalue(f"{request.param}_process")
    assert process.kind == request.param
    return process
