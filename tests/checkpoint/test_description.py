"""ultralong.json keeps every part of a rope, lists included, and reads what was written before a part existed."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_ultralong.checkpoint.description import DESCRIPTION, Description
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.rope import config_json
from tests.rope.real_configs import REAL


def test_every_real_rope_reads_back(tmp_path: Path) -> None:
    for config in REAL.values():
        written = Description(completed(config), config_json.read(config), "abc", 3, {"source": "x"})
        written.write(tmp_path)
        assert Description.read(tmp_path) == written


def test_a_description_from_before_partial_rotary_and_lists(tmp_path: Path) -> None:
    rope = config_json.read(REAL["Llama-3.1-8B"])
    Description({}, rope, "", 0, {}).write(tmp_path)
    value = json.loads((tmp_path / DESCRIPTION).read_text())
    for name in ("rotary_fraction", "short_factors", "long_factors"):
        del value["rope"][name]
    (tmp_path / DESCRIPTION).write_text(json.dumps(value))
    assert Description.read(tmp_path).rope == rope
