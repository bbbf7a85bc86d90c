"""The report in a browser: axe (WCAG AA) and layout, on narrow and wide screens, light and dark."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from featcache.reporting.document import RunReport
from featcache.reporting.html import to_html
from featcache.translation.language import in_language
from tests.support.browser import Browser, Page
from tests.support.layout import problems, unfold
from tests.support.reports import HOSTILE, report, report_of
from tests.support.screens import CLASSES, RUNS, WIDTHS


def found_on(shown: RunReport, browser: Browser, path: Path, *screens: tuple[int, bool]) -> list[str]:
    """What axe and the boxes find with everything unfolded, on screens of a width, in dark colours or not."""
    path.write_text(to_html(shown), encoding="utf-8")
    page = Page(browser, path.as_uri())
    unfold(page)
    found = []
    for width, dark in screens:
        page.resize(width)
        page.paint(dark=dark)
        found += [f"{width}: {one}" for one in page.violations() + problems(page)]
    found += page.complaints()
    page.close()
    return found


@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.slow), 60])
def test_the_report_of_hostile_texts_passes_axe(classes: int, browser: Browser, tmp_path: Path) -> None:
    names = (HOSTILE[0], *(f"类别 {number}" for number in range(1, classes)))
    shown = report(names, "房间很干净，服务也好。" * 9)
    assert found_on(shown, browser, tmp_path / "report.html", (390, False), (1280, True)) == []


@pytest.mark.parametrize(("runs", "classes"), [pytest.param(1, 60, marks=pytest.mark.slow), (12, 10)])
def test_the_report_of_many_fits_every_screen(
    runs: int, classes: int, browser: Browser, tmp_path: Path
) -> None:
    screens = ((390, True), (800, False), (1280, False))
    assert found_on(report_of(runs, classes), browser, tmp_path / "report.html", *screens) == []


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("runs", "classes"), itertools.product(RUNS, CLASSES))
def test_every_report_fits_every_screen(
    runs: int, classes: int, language: str, browser: Browser, tmp_path: Path
) -> None:
    screens = itertools.product(WIDTHS, (False, True))
    with in_language(language):
        assert found_on(report_of(runs, classes), browser, tmp_path / "report.html", *screens) == []


def test_what_is_wrong_is_found(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<html lang=en><title>x</title><h1>x</h1><img src='data:,'>"
        "<p style='color:#bbb;width:900px'>faint</p>"
        "<p style='width:3em;overflow:hidden;white-space:nowrap'>a label that is cut</p>"
        "<p style='width:3em;white-space:nowrap'>a label that leaves</p>"
        "<div style='width:3em;overflow:auto'><p style='width:9em'>scrolled</p></div>"
        "<svg viewBox='0 0 99 20'><text y=9>one</text><text y=9 x=5>two</text>"
        "<text y=9 x=95>three</text></svg>",
        encoding="utf-8",
    )
    page = Page(browser, path.as_uri(), width=390)
    assert {"color-contrast", "image-alt"} <= {one.split(":")[0] for one in page.violations()}
    found = problems(page)
    for said in (
        "900px",
        "text is cut: a label that is cut",
        "text leaves its box: a label that leaves",
        "the keyboard does not reach a scrolled region: scrolled",
        "texts overlap: one / two",
        "text leaves its figure: three",
    ):
        assert any(said in one for one in found), (said, found)
    page.close()
