"""The report in a browser: axe (WCAG AA), on narrow and wide screens, in both colour schemes."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.reporting.html import to_html
from tests.support.browser import Browser, Page
from tests.support.reports import HOSTILE, report


@pytest.mark.parametrize("classes", [2, 60])
def test_the_report_passes_axe_on_every_screen(classes: int, browser: Browser, tmp_path: Path) -> None:
    names = (HOSTILE[0], *(f"类别 {number}" for number in range(1, classes)))
    path = tmp_path / "report.html"
    path.write_text(to_html(report(names, "房间很干净，服务也好。" * 9)), encoding="utf-8")
    page = Page(browser, path.as_uri())
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for width, dark in ((390, False), (1280, True)):
        page.resize(width)
        page.paint(dark=dark)
        assert page.violations() == [] and page.overflow() == []
    assert page.complaints() == []
    page.close()


def test_axe_and_the_width_find_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<html lang=en><title>x</title><h1>x</h1><img src='data:,'><p style='color:#bbb;width:900px'>faint",
        encoding="utf-8",
    )
    page = Page(browser, path.as_uri(), width=390)
    assert {"color-contrast", "image-alt"} <= {one.split(":")[0] for one in page.violations()}
    assert any("900px" in one for one in page.overflow())
    page.close()
