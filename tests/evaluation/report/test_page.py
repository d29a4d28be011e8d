"""The page is well-formed, needs nothing else, says in words what its pictures show, and keeps texts texts."""

import json
import xml.etree.ElementTree as ET

import pytest

from megatron_ultralong.evaluation.commands.compare_runs import compare_runs
from tests.evaluation.report.run_folders import line, needle, window, write_run


def page_of(folder):
    content = (folder / "report.html").read_text(encoding="utf-8")
    assert content.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(content.removeprefix("<!DOCTYPE html>\n"))


@pytest.fixture(scope="module")
def report(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": n, "loss": 3.0 / n, "grad_norm": 1.0}) + "\n" for n in (1, 2, 3)))
    found = {"loss/h<o>": 2.0, "loss/h<o>/0-16": 2.5, "perplexity/h<o>": 7.4, "needles/64": 0.5}
    later = found | {"loss/h<o>": 1.5, "needles/64": None}
    with metrics.open("a") as stream:
        stream.writelines(json.dumps({"step": s, "validation": v}) + "\n" for s, v in ((0, found), (3, later)))
    (folder / "extra.json").write_text(json.dumps({"world_size": 2, "seconds": {"extend": 130.0}}))
    compare_runs(tuple(map(str, small)), output=folder, metrics=(f"stage <1>={metrics}",), extra=folder / "extra.json")
    return folder


def test_the_page_needs_nothing_else(report):
    page = page_of(report)
    assert {element.tag for element in page.iter()} & {"script", "iframe", "object", "img"} == set()
    links = [value for element in page.iter() for key, value in element.items() if key in ("src", "href")]
    assert links and all(link.startswith("#") or link == "data:," for link in links)
    targets = {element.get("id") for element in page.iter()}
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    assert "url(" not in (report / "report.html").read_text()


def test_every_picture_has_a_text_that_says_the_same(report):
    titles = [svg.findtext("title") for svg in page_of(report).iter("svg")]
    assert "needles, base: 75.0 % over all cells, 4 prompts; 50.0 % at 8,192 tokens" in titles
    base, extended = "base 75.0 at 4,096 and 0.0 at 128K tokens", "extended 75.0 at 4,096 and 75.0 at 128K tokens"
    assert f"RULER by length: {base}; {extended}." in titles
    assert "loss, nats a token of stage <1>: 3.000 at first, 1.000 at last" in titles
    assert "share of needles found of stage <1>: 64 0.500 at first, 0.500 at last" in titles
    validated = "h<o> 2.000 at first, 1.500 at last; h<o>/0-16 2.500 at first, 2.500 at last"
    assert f"validation loss, nats a token of stage <1>: {validated}" in titles
    assert all(titles)


def test_the_page_says_what_it_came_to(report):
    page = page_of(report)
    words = " ".join("".join(page.itertext()).split())
    assert page.findtext(".//h1") == "From 8,192 to 128K tokens of context"
    for expected in (
        "88 answers, greedy, by the hf backend",
        "a <reason> & more",
        "2 min 10 s",
        "world size",
        "stage <1>",
        "In italics: published by arXiv 2504.06214, not measured here.",
        "<128K",
    ):
        assert expected in words
    assert next(page.iter("mark")).text == "The red key is 48213."


def test_averages_that_lack_lengths_are_starred(report):
    stars = [cell for cell in page_of(report).iter("td") if "".join(cell.itertext()).endswith("*")]
    assert [(cell.text, cell.get("title", "").partition(";")[0]) for cell in stars] == [
        ("30.0*", "without 16K, over 2 of 13 tasks"), ("75.0*", "without 16K, over 2 of 13 tasks"),
    ]  # fmt: skip


def test_numbers_and_pictures_beside_the_page(report):
    found = json.loads((report / "compare.json").read_text())
    assert (found["format"], found["reference"]) == (1, "base")
    assert found["models"]["extended"]["context_length"] == 131072
    assert found["families"]["ruler"]["models"]["base"]["lengths"]["4096"]["score"] == 75
    assert found["extra"] == {"world_size": 2, "seconds": {"extend": 130.0}}
    for picture in ("heatmap.png", "ruler.png"):
        assert (report / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_same_runs_give_the_same_bytes(small, tmp_path):
    for name in ("one", "two"):
        compare_runs(tuple(map(str, small)), output=tmp_path / name)
    for name in ("report.html", "compare.json", "heatmap.png", "ruler.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_a_model_says_stays_text(tmp_path):
    bad = "</pre><script>alert(1)</script>\x00\x1b[31m\u202e" + "x" * 5000
    rows = [needle(0, 4096, 0.5, 0.0, answer=bad, references=[bad]), line("ruler/<vt>", 0, 4096, 0.0, answer="")]
    rows[0]["excerpt"] = ["<b>", bad, "&amp;"]
    run = write_run(tmp_path / "run", "<i>m</i>", rows, context=None)
    compare_runs((str(run),), output=tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert {"script", "b", "i"} & {
        e.tag for e in page.iter() if e.text and ("alert" in e.text or e.text == "m")
    } == set()
    words = "".join(page.itertext())
    assert "</pre><script>alert(1)</script>\ufffd\ufffd[31m\ufffd" in words and "characters more]" in words
    assert page.findtext(".//h1") == "What <i>m</i> can find in long texts"


def test_models_that_were_asked_different_things(tmp_path):
    """One has needles and a window, one another benchmark, one only what was skipped."""
    windows = [window(0, 4096, [(0, 4096, 8190.0, 4095)])]
    skipped = [{"task": "ruler/vt", "length": 4096, "samples": None, "reason": "too short"}]
    runs = [
        write_run(tmp_path / "a", "a", [needle(0, 4096, 0.5, 1.0)], windows=windows, context=None),
        write_run(tmp_path / "b", "b", [line(f"babilong/qa{n}", 0, length, 1.0) for n in (1, 2) for length in (1, 2)]),
        write_run(tmp_path / "c", "c", [], skipped=skipped),
    ]
    for order in (runs, runs[::-1], runs[2:]):
        compare_runs(tuple(map(str, order)), output=tmp_path / "out")
        words = "".join(page_of(tmp_path / "out").itertext())
        assert "too short" in words and "all" in words
    assert page_of(tmp_path / "out").findtext(".//h1") == "What c can find in long texts"


def test_short_context_beside_the_papers(tmp_path):
    run = write_run(tmp_path / "run", "m", [])
    results = json.loads((run / "results.json").read_text())
    row = {"task": "short/mmlu", "label": "MMLU", "metric": "acc,none", "shots": 5, "score": 66.12, "samples": 14042}
    results["short"] = [row | {"truncated": 0}, row | {"task": "short/mine", "label": "mine", "truncated": 3}]
    (run / "results.json").write_text(json.dumps(results))
    compare_runs((str(run),), output=tmp_path / "out")
    cells = ["".join(cell.itertext()) for cell in page_of(tmp_path / "out").iter("td")]
    assert cells[:4] == ["66.1", "66.1*", "64.83", "\u2013"]


def test_perplexity_at_lengths_that_only_one_model_read(tmp_path):
    runs = [
        write_run(tmp_path / name, name, [], windows=[window(0, length, [(0, length, 2.0 * length, length)])])
        for name, length in (("a", 256), ("b", 512))
    ]
    compare_runs(tuple(map(str, runs)), output=tmp_path / "out")
    (title,) = [svg.findtext("title") for svg in page_of(tmp_path / "out").iter("svg")]
    assert title == "Perplexity by position, in windows of 512 tokens, from first to last: b 7.4 to 7.4."
