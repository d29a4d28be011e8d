"""The page in a real browser: it says nothing on the console, and nothing is wider than the page, opened or not."""

import pytest

from megatron_ultralong.evaluation.commands.compare_runs import compare_runs
from tests.evaluation.report.browser import Browser, find_browser

OPEN = "for (const part of document.querySelectorAll('details')) part.open = true"


@pytest.fixture(scope="module")
def browser():
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium here; as root on Debian: tests/evaluation/report/browser.sh install")
    with Browser(program) as started:
        yield started


@pytest.fixture(scope="module")
def report(large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    compare_runs(tuple(map(str, large)), output=folder)
    return folder / "report.html"


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_and_is_quiet(browser, report, width):
    browser.show(report, width)
    assert browser.evaluate("document.querySelectorAll('section').length") >= 6
    assert browser.wider() == []
    browser.evaluate(OPEN)
    assert browser.wider() == []
    assert browser.messages == []


def test_the_browser_would_notice(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<!DOCTYPE html><meta name="viewport" content="width=device-width"><div style="width:500px">w</div>'
                    "<script>console.error('loud'); undefined_name()</script>")  # fmt: skip
    browser.messages.clear()
    browser.show(page, 360)
    assert any("8 to 508" in found for found in browser.wider())
    assert len(browser.messages) >= 2
    browser.messages.clear()


def test_letters_can_be_read_on_a_phone(browser, report):
    """No text of a picture is smaller than 9.5 px there, and none of the page smaller than 11."""
    browser.show(report, 360)
    sizes = browser.evaluate("""[...document.querySelectorAll('svg')].filter(svg => svg.clientWidth).map(svg =>
        11 * svg.clientWidth / svg.viewBox.baseVal.width)""")
    assert sizes and min(sizes) >= 9.5
    small = browser.evaluate("""[...document.querySelectorAll('main *')].filter(e => e.closest('svg') === null &&
        e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 11).length""")
    assert small == 0


def test_dark_is_dark(browser, report):
    browser.show(report, 360, scheme="dark")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
