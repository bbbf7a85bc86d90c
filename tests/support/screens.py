"""Pictures of reports on three screens, to be looked at: `python -m tests.support.screens FOLDER`.

1, 3 and 12 runs, 2, 10 and 60 classes, in both languages; 390, 800 and 1280 pixels, light and dark.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from featcache.reporting.html import to_html
from featcache.translation.language import in_language
from tests.support.browser import Browser, Page
from tests.support.layout import problems, unfold
from tests.support.reports import report_of

RUNS, CLASSES, WIDTHS, LANGUAGES = (1, 3, 12), (2, 10, 60), (390, 800, 1280), ("en", "zh")


def pages(folder: Path) -> Iterator[Path]:
    """Reports as HTML files, one for each number of runs, of classes, and each language."""
    for runs, classes, language in itertools.product(RUNS, CLASSES, LANGUAGES):
        path = folder / f"{runs}-runs-{classes}-classes-{language}.html"
        with in_language(language):
            path.write_text(to_html(report_of(runs, classes)), encoding="utf-8")
        yield path


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        for path in pages(folder):
            page = Page(browser, path.resolve().as_uri())
            unfold(page)
            for width, dark in itertools.product(WIDTHS, (False, True)):
                page.resize(width)
                page.paint(dark=dark)
                page.picture(path.with_name(f"{path.stem}-{width}-{'dark' if dark else 'light'}.png"))
                for problem in problems(page):
                    print(f"{path.stem} {width}: {problem}")
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
