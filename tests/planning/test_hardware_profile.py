"""A hardware profile is read as it was written, and what is wrong with one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.planning import hardware_profile
from megatron_ultralong.planning.hardware_profile import AttentionRate, HardwareProfile

PROFILE = HardwareProfile(
    name="A GPU",
    memory=80 * 2**30,
    matmul=7e14,
    copy=3e12,
    attention=(AttentionRate(8192, 4e14, 3e14), AttentionRate(65536, 5e14, 4e14)),
    commit=None,
    date="2030-01-02",
)


def test_is_read_as_it_was_written(tmp_path: Path) -> None:
    PROFILE.write(tmp_path / "gpu.json")
    assert HardwareProfile.read(tmp_path / "gpu.json") == PROFILE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "is not of format 1"),
        ({"matmul": "fast"}, "matmul of the hardware profile is 'fast', and no positive number"),
        ({"memory": 0}, "memory of the hardware profile is 0,"),
        ({"attention": [{"tokens": 1, "forward": 1.0, "backward": -1.0}]}, "attention.backward .* is -1.0"),
        ({"attention": [{"tokens": 1}]}, "missing or unknown"),
        ({"clock": 1}, "missing or unknown"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    PROFILE.write(tmp_path / "gpu.json")
    value = json.loads((tmp_path / "gpu.json").read_text())
    (tmp_path / "gpu.json").write_text(json.dumps({**value, **change}))
    with pytest.raises(UserError, match=said):
        HardwareProfile.read(tmp_path / "gpu.json")


@pytest.mark.parametrize("path", sorted(Path(hardware_profile.__file__).parent.glob("profiles/*.json")), ids=str)
def test_a_profile_of_the_house_can_be_read(path: Path) -> None:
    HardwareProfile.read(path)
