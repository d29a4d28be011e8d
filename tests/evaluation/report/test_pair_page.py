"""The page is well-formed, needs nothing else, and says in words and tables what its pictures show."""

import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.evaluation.report.pair_page import model_names, write_report
from megatron_ultralong.evaluation.report.plots import length_label

CURVES = {"stage <one>": [{"step": step, "loss": 3.0 / step, "grad_norm": 1.0} for step in (1, 2, 3)]}


def model_results(context: int, scores: dict[int, float], short_task: float) -> dict[str, Any]:
    return {
        "folder": "models/<tiny> & small",
        "context_length": context,
        "passkey": [
            {"length": length, "depth": depth, "score": score, "samples": 4}
            for length, score in scores.items()
            for depth in (0.0, 1.0)
        ],
        "passkey_at_target": scores[1024],
        "short_task": short_task,
        "short_task_questions": 600,
        "seconds": {"passkey": 61.0},
    }


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    def rows(values: tuple[float, float]) -> list[dict[str, Any]]:
        edges = ((0, 256), (256, 1024))
        return [
            {"from": low, "to": high, "perplexity": value, "tokens": 100}
            for (low, high), value in zip(edges, values, strict=True)
        ]

    return {
        "base": model_results(256, {256: 1.0, 1024: 0.125}, 0.98),
        "extended": model_results(1024, {256: 1.0, 1024: 0.975}, 0.97),
        "target_length": 1024,
        "perplexity": {"base": rows((12.5, 1234.5)), "extended": rows((12.6, 9.9))},
        "rope_scaling": {"rope_type": "llama3", "factor": 4.0},
        "seconds": {"training": 130.0},
        "settings": {"seed": 0, "recall_length": 256},
        "world_size": 2,
    }


@pytest.fixture(scope="module")
def folder(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    write_report(results, path, CURVES)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> ET.Element:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def test_the_page_needs_nothing_else(page: ET.Element) -> None:
    assert {element.tag for element in page.iter()} & {"script", "link", "iframe", "object"} == set()
    links = [value for element in page.iter() for key, value in element.items() if key in ("src", "href")]
    assert len(links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "url(" not in "".join(page.itertext())


def test_every_picture_has_a_text_that_says_the_same(page: ET.Element) -> None:
    heatmap, perplexity, short_task, training = [image.get("alt") for image in page.iter("img")]
    assert heatmap == (
        "Heatmaps of passkey retrieval by depth and length. base up to 256 tokens: 100% found; base beyond: 12% found; "
        "extended up to 256 tokens: 100% found; extended beyond: 98% found."
    )
    assert perplexity is not None
    assert "base: 12.5 to 1,234.5; extended: 12.6 to 9.9" in perplexity
    assert short_task == "Share answered exactly: base 98.0%; extended 97.0%."
    assert training == "stage <one>: loss 3.000 at first, 1.000 at last"


def test_the_numbers_are_in_the_page(page: ET.Element) -> None:
    words = " ".join(page.itertext())
    assert page.findtext(".//h1") == "From 256 to 1,024 tokens of context"
    cards = ["".join(card.itertext()) for card in page.iter("dd")]
    assert cards == ["256 \u2192 1,024", "12% \u2192 98%", "1,234.5 \u2192 9.9", "98.0% \u2192 97.0%"]
    for expected in ("models/<tiny> & small", "world size", '"factor": 4.0', "2 min 10 s", "1 min 01 s", "1,234.50"):
        assert expected in words


def test_the_heatmap_is_a_png_of_its_own(folder: Path) -> None:
    content = (folder / "heatmap.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1648, 784)


def test_one_model_and_one_length_are_enough(results: dict[str, Any], tmp_path: Path) -> None:
    alone = {key: value for key, value in results.items() if key != "extended"}
    alone["base"] = results["base"] | {"passkey": results["base"]["passkey"][-1:]}
    assert model_names(alone) == ["base"]
    write_report(alone, tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_same_results_give_the_same_bytes(results: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path, CURVES)
    for name in ("report.html", "heatmap.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("tokens", "label"), [(256, "256"), (2048, "2,048"), (131072, "128K"), (4194304, "4M"), (20000, "20,000")]
)
def test_length_label(tokens: int, label: str) -> None:
    assert length_label(tokens) == label
