"""A hardware profile is read as it was written, what is wrong with one is named, and each figure has a source."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.planning import hardware_profile
from megatron_ultralong.planning.hardware_profile import (
    PROFILES,
    AttentionRate,
    CopyRate,
    HardwareProfile,
    LinkRate,
    MatmulRate,
    Source,
    find,
    interpolated,
    known,
    like_device,
)

PROFILE = HardwareProfile(
    name="A GPU",
    precision="bf16",
    memory=80 * 2**30,
    matmul=(MatmulRate(512, 3e14), MatmulRate(8192, 7e14)),
    copy=(CopyRate(1e9, 3e12),),
    attention=(AttentionRate(8192, 4e14, 3e14), AttentionRate(65536, 5e14, 4e14)),
    commit=None,
    date="2030-01-02",
    links=(LinkRate("domain", "send", 4e11, 0.0),),
    sources={"matmul": Source("measured", "here")},
)


def test_is_read_as_it_was_written(tmp_path: Path) -> None:
    PROFILE.write(tmp_path / "gpu.json")
    assert HardwareProfile.read(tmp_path / "gpu.json") == PROFILE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 1}, "is not of format 2"),
        (
            {"matmul": [{"width": 512, "rate": "fast"}]},
            "matmul.rate of the hardware profile is 'fast', and no",
        ),
        ({"memory": 0}, "memory of the hardware profile is 0,"),
        ({"launch": True}, "launch of the hardware profile is True,"),
        ({"exponential": -1.0}, "exponential of the hardware profile is -1.0, and no number of at least 0"),
        ({"attention": [{"tokens": 1, "forward": 1.0, "backward": -1.0}]}, "attention.backward .* is -1.0"),
        ({"attention": [{"tokens": 1}]}, "missing or unknown"),
        ({"attention": []}, "no rate of matmul, attention or copy"),
        ({"clock": 1}, "missing or unknown"),
        (
            {"sources": {"matmul": {"kind": "rumour", "text": ""}}},
            "sources.matmul .* is 'rumour'; give one of data",
        ),
        ({"like": "h101"}, 'like is "h101"; the nearest is h100'),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    PROFILE.write(tmp_path / "gpu.json")
    value = json.loads((tmp_path / "gpu.json").read_text())
    (tmp_path / "gpu.json").write_text(json.dumps({**value, **change}))
    with pytest.raises(UserError, match=said):
        HardwareProfile.read(tmp_path / "gpu.json")


def test_what_was_not_measured_comes_from_the_profile_it_is_like(tmp_path: Path) -> None:
    mixed = dataclasses.replace(PROFILE, like="h100")
    mixed.write(tmp_path / "gpu.json")
    found, h100 = find(str(tmp_path / "gpu.json")), find("H100")
    assert found.matmul == PROFILE.matmul and found.links == PROFILE.links
    assert found.launch == h100.launch and found.host_link == h100.host_link
    assert found.sources["matmul"] == Source("measured", "here")
    assert found.sources["launch"] == h100.sources["launch"]
    PROFILE.write(tmp_path / "alone.json")
    with pytest.raises(UserError, match="says nothing of exponential, launch, domain, host_link, host_copy; name in"):
        find(str(tmp_path / "alone.json"))


@pytest.mark.parametrize("name", known())
def test_every_figure_of_the_house_has_a_source(name: str) -> None:
    found = HardwareProfile.read(PROFILES / f"{name}.json")
    figures = {field.name for field in dataclasses.fields(found)}
    figures -= {"name", "precision", "commit", "date", "asynchronous", "sources", "like"}
    named = [figure for figure in figures if getattr(found, figure) not in (None, ())]
    assert set(found.sources) == set(named)
    assert all(len(source.text) > 10 for source in found.sources.values())


def test_the_usual_machines_are_there() -> None:
    assert {"a100-40g", "a100-80g", "h100", "h200", "b200", "gb200", "mi300x"} <= set(known())


@pytest.mark.parametrize(
    ("device", "memory", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 85e9, "h100"),
        ("NVIDIA A100-SXM4-40GB", 42e9, "a100-40g"),
        ("NVIDIA A100-SXM4-80GB", 85e9, "a100-80g"),
        ("NVIDIA GB200", 186e9, "gb200"),
        ("Some card", 1e9, None),
    ],
)
def test_profiles_by_what_pytorch_calls_a_device(device: str, memory: float, name: str | None) -> None:
    assert like_device(device, int(memory)) == name


@pytest.mark.parametrize(("name", "said"), [("h1000", "the nearest is h100"), ("zzz", "none is near; give one")])
def test_an_unknown_name_gets_the_nearest(name: str, said: str) -> None:
    with pytest.raises(UserError, match=f'--hardware is "{name}"; {said}'):
        find(name)


def test_rates_between_two_lie_on_a_line_of_logarithms() -> None:
    assert hardware_profile.interpolated(1, [10, 1000], [2, 8]) == 2
    assert interpolated(100, [10, 1000], [2, 8]) == pytest.approx(4)
    assert interpolated(1e9, [10, 1000], [2, 8]) == 8
