"""A rehearsal on disk and on a page says what was counted."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.files import read_json
from megatron_ultralong.rehearsal.differing import JobRehearsal, rehearse_job
from megatron_ultralong.rehearsal.ledger import Timeline
from megatron_ultralong.rehearsal.record import as_json, columns, sections, traffic
from megatron_ultralong.rehearsal.rehearsal_page import page, timeline
from tests.examples.test_examples import ROOT


@pytest.fixture(scope="module")
def job() -> JobRehearsal:
    config = load_config(ROOT / "examples/tiny_cpu/extend.toml", ["--parallel.recompute", "selective"])
    return rehearse_job(config, read_json(ROOT / "examples/tiny_cpu/base/config.json", "the model", ""), 4)


def test_the_record_is_json_of_what_was_counted(job: JobRehearsal) -> None:
    found = json.loads(json.dumps(as_json(job), allow_nan=False))
    first, last = found["ranks"]
    assert (first["stands_for"], last["stands_for"]) == ("context 1 of 2", "context 2 of 2")
    assert found["worst_rank"] == job.worst.rank and found["world_size"] == 4
    assert sum(part["bytes"] for part in first["peak_parts"]) == first["peak_bytes"] == job.found[0].peak.bytes
    assert max(point["bytes"] for point in first["timeline"]) == first["peak_bytes"]
    assert sum(row["count"] for row in first["collectives"]) == job.found[0].messages.total()
    assert {row.group for row in traffic(job.found[0])} >= {"CP", "DP x CP"}


def test_a_timeline_keeps_its_highest_points() -> None:
    line = Timeline([(n % 1000, 0, 0) for n in range(5000)], [(0, "forward", 0), (2500, "backward", 0)])
    points = columns(line, 50)
    assert len(points) == 50 and max(point[0] for point in points) == 999
    assert [point[3] for point in points] == ["forward"] * 25 + ["backward"] * 25
    assert columns(Timeline([(7, 1, 2)], [(0, "", -1)]), 50) == [(7, 1, 2, "")]


def test_the_page_stands_alone_and_says_what_the_sections_say(job: JobRehearsal) -> None:
    text = page(job, "runs <&> things/run.toml", 80_000_000_000)
    assert not re.search(r"<script|<link|src=|url\(|https?://(?!www\.w3)", text)
    assert "runs &lt;&amp;&gt; things/run.toml" in text and 'name="viewport"' in text
    drawn = ElementTree.fromstring(re.search(r"<svg.*?</svg>", text, re.S)[0])  # type: ignore[index]
    assert [path.tag for path in drawn.iter("path")] == ["path"] * 3
    assert f"{job.worst.peak.bytes / 1e9:.1f} GB" in [each.text for each in drawn.iter("text")]
    for section in sections(job):
        assert all(f"<td>{html.escape(cell)}</td>" in text for row in section.rows for cell in row)
    assert timeline(job.worst).count("the device") == 0
