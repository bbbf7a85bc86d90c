"""The HTML page: texts are escaped, nothing is loaded, every part is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.reporting import html as report_html
from featcache.reporting.figures import FIGURES
from featcache.reporting.html import to_html
from featcache.reporting.markdown import to_markdown
from featcache.reporting.words import EXCERPT, excerpt
from tests.support.reports import ALERT, HOSTILE, report


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes, and the text people read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def check_page(html: str) -> Page:
    """Every tag is closed, nothing runs, nothing is loaded, and every reference stays within the page."""
    page = Page(html)
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        assert tag not in (
            "script",
            "iframe",
            "object",
            "embed",
            "img",
            "a",
            "base",
            "form",
            "foreignobject",
        ), tag
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "srcset"):
            value = attrs.get(name)
            assert value is None or value == "data:," or (value.startswith("#") and value[1:] in ids), value
        for value in attrs.values():
            assert all(inside[1:] in ids for inside in re.findall(r"url\(([^)]*)\)", value or "")), value
    assert "@import" not in html and "url(http" not in html
    return page


def test_to_html_shows_every_part() -> None:
    page = check_page(to_html(report()))
    assert sum(tag == "svg" for tag, _ in page.tags) == len(FIGURES)
    for words in (
        "差评",
        "好评",
        "房间很干净",
        "Likely label errors",
        "Leakage",
        "90.00 %",
        "80.00 to 95.00",
        "better",
    ):
        assert words in page.text, words
    policy = next(
        attrs["content"]
        for tag, attrs in page.tags
        if tag == "meta" and "content" in attrs and "http-equiv" in attrs
    )
    assert policy is not None and policy.startswith("default-src 'none'")
    html = to_html(report())
    assert "prefers-color-scheme: dark" in html and "@media print" in html and "Noto Sans CJK SC" in html
    assert to_html(report()) == html  # the same report, the same bytes


def test_to_html_escapes_hostile_texts_and_labels() -> None:
    shown = report(HOSTILE, " ".join(HOSTILE))
    page = check_page(to_html(shown))
    assert sum(tag == "svg" for tag, _ in page.tags) == len(FIGURES)
    assert page.text.count(ALERT) >= 12 and "{{ 7 * 7 }}" in page.text and "\x1b" not in page.text
    markdown = to_markdown(shown)
    markdown.encode("utf-8")
    assert "<" not in markdown and "](" not in markdown.replace("\\](", "")


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=30), st.text(min_size=1, max_size=60))
def test_to_html_and_to_markdown_take_any_text_and_label(label: str, text: str) -> None:
    shown = report((label, "other" + label), text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_html, "figures", lambda _: {})  # these take a second
        check_page(to_html(shown))
    table = [line for line in to_markdown(shown).splitlines() if line.startswith(("| 3 |", "| test 3 |"))]
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table]
    assert bars == [7, 6, 4, 5]  # mistakes, label errors, conflicts, outliers


def test_to_html_shortens_long_texts() -> None:
    shown = report(("标" * 1_000_000, "b"), "长" * 1_000_000)
    assert len(to_html(shown)) < 500_000 and len(to_markdown(shown)) < 100_000
    assert excerpt("x" * EXCERPT) == "x" * EXCERPT and excerpt("x" * (EXCERPT + 1)).endswith("x…")


def test_to_html_of_a_report_with_few_parts() -> None:
    bare = replace(
        report(),
        **dict.fromkeys(("lengths", "truncated", "map", "cost", "data", "without_leaks", "confusion")),
        risk_curve=None,
        **dict.fromkeys(
            ("curves", "learning_curves", "classes", "reliability", "mistakes", "notes", "comparisons"), ()
        ),
        runs=report().runs[:1],
    )
    page = check_page(to_html(bare))
    assert [tag for tag, _ in page.tags].count("svg") == 1  # the histogram
    assert "Runs side by side" not in page.text and to_markdown(bare).startswith("# linear-1")
