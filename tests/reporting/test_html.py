"""The HTML page: texts are escaped, nothing is loaded, every part is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.reporting import html as report_html
from featcache.reporting.document import HeadlineMetric
from featcache.reporting.figures import figures
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
    """Every tag is closed, nothing runs, nothing is loaded, and every reference stays within the page.

    Landmarks, headings of tables and regions that the keyboard reaches are there for assistive technology.
    """
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
        assert tag != "a" or (attrs["href"] or "").startswith("#")
        assert tag != "th" or "scope" in attrs
        assert tag != "svg" or (attrs["role"], attrs["aria-labelledby"]) >= ("img", "")
        assert attrs.get("class") != "text" or "lang" in attrs
        if attrs.get("class") == "scroll":
            assert attrs["tabindex"] == "0" and attrs["role"] == "region" and attrs["aria-label"]
    tags = [tag for tag, _ in page.tags]
    assert tags.count("main") == tags.count("h1") == 1
    assert tags.count("title") == tags.count("desc") + 1 == tags.count("svg") + 1
    assert "@import" not in html and "url(http" not in html
    return page


def test_to_html_shows_every_part() -> None:
    page = check_page(to_html(report()))
    assert sum(tag == "svg" for tag, _ in page.tags) == len(figures(report()))
    for words in (
        "差评",
        "好评",
        "房间很干净",
        "Doubtful labels",
        "Rows that an earlier split has",
        "90.00\u00a0%",
        "80.00 to 95.00",
        "better +2.00 [1.00, 3.00]",
        "always “差评”",
        "no text is twice in a split",
        "The nearest train text is labelled 好评.",
        "Made on 2026-01-02 by featcache 0.2.0",
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


def test_a_count_of_one_has_a_singular() -> None:
    for text in (Page(to_html(report())).text, to_markdown(report())):
        assert "1 row (1 test), the least likely label first." in " ".join(text.split())
        assert not re.search(r"\b1 (test )?(rows|texts|labels)\b", text)


def test_to_html_escapes_hostile_texts_and_labels() -> None:
    shown = report(HOSTILE, " ".join(HOSTILE))
    page = check_page(to_html(shown))
    assert sum(tag == "svg" for tag, _ in page.tags) == len(figures(report()))
    assert page.text.count(ALERT) >= 12 and "{{ 7 * 7 }}" in page.text and "\x1b" not in page.text
    markdown = to_markdown(shown)
    markdown.encode("utf-8")
    assert "<" not in markdown and "](" not in markdown.replace("\\](", "")


@settings(max_examples=25)
@given(st.text(st.characters(), min_size=1, max_size=30), st.text(min_size=1, max_size=60))
def test_to_html_and_to_markdown_take_any_text_and_label(label: str, text: str) -> None:
    shown = report((label, "other" + label), text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_html, "figures", lambda _: {})  # these take a second
        check_page(to_html(shown))
    table = [line for line in to_markdown(shown).splitlines() if line.startswith(("| 3 |", "| test 3 |"))]
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table]
    assert bars == [4] * 5  # mistakes, doubtful labels, leaked rows, conflicts, outliers


def test_to_html_shortens_long_texts() -> None:
    shown = report(("标" * 1_000_000, "b"), "长" * 1_000_000)
    assert len(to_html(shown)) < 500_000 and len(to_markdown(shown)) < 100_000
    assert excerpt("x" * EXCERPT) == "x" * EXCERPT and excerpt("x" * (EXCERPT + 1)).endswith("x…")


def test_to_html_of_a_report_with_few_parts() -> None:
    bare = replace(
        report(),
        **dict.fromkeys(("lengths", "truncated", "map", "cost", "data", "without_leaks", "confusion")),
        **dict.fromkeys(("risk_curve", "majority", "few_labels")),
        **dict.fromkeys(("checks", "matrix", "matrix_labels"), ()),
        **dict.fromkeys(
            ("curves", "learning_curves", "classes", "reliability", "mistakes", "notes", "comparisons"), ()
        ),
        runs=report().runs[:1],
    )
    page = check_page(to_html(bare))
    assert [tag for tag, _ in page.tags].count("svg") == 1  # the histogram
    assert "against the first" not in page.text and to_markdown(bare).startswith("# linear-1")


def test_a_count_of_the_matrix_opens_its_texts() -> None:
    """Without a script: the count is a link to the part of the page that the address then shows."""
    html = to_html(report())
    page = check_page(html)
    (link,) = (attrs for tag, attrs in page.tags if tag == "a")
    assert link["href"] == "#cell-0-1" and link["aria-label"] == "差评, predicted 好评: 1 row"
    cells = html[html.index('id="cell-0-1"') :]
    assert "房间很干净" in cells[: cells.index("</section>")] and "row cdcdcdcd" in cells
    assert ".cell { display: none" in html and ".cell:target { display: block" in html


def test_the_worst_check_comes_first_and_has_a_word() -> None:
    text = Page(to_html(report())).text
    assert text.index("bad Similar labels") < text.index("good Duplicates")
    assert to_markdown(report()).index("| bad |") < to_markdown(report()).index("| good |")


def test_texts_are_marked_with_their_language() -> None:
    languages = {"房间很干净": "zh", "部屋はきれい": "ja", "방이 깨끗하다": "ko", "clean": ""}
    for text, language in languages.items():
        page = Page(to_html(report(text=text)))
        assert {attrs["lang"] for _, attrs in page.tags if attrs.get("class") == "text"} == {language}


def test_a_page_of_several_labels_a_row_names_exact_matches_and_micro_f1() -> None:
    shown = report()
    several = replace(
        shown,
        about=replace(shown.about, task="multi-label"),
        headline={**shown.headline, "micro_f1": HeadlineMetric(0.8, (0.7, 0.85))},
        confusion=None,
    )
    page, markdown = Page(to_html(several)), to_markdown(several)
    for words in ("test micro F1", "test exact match", "rows that have it, %"):
        assert words in page.text, words
    assert "accuracy" not in page.text.lower() and "test micro F1" in markdown


def test_curves_of_other_runs_are_not_shown_as_those_of_the_run() -> None:
    shown = report()
    (curve,) = shown.curves
    other = replace(curve, run="other-1")
    assert "runs_loss" not in figures(shown) and {"loss", "accuracy"} <= figures(shown).keys()
    drawn = figures(replace(shown, curves=[other]))
    assert {"runs_loss", "runs_accuracy"} <= drawn.keys() and not {"loss", "accuracy"} & drawn.keys()
    both = figures(replace(shown, curves=[curve, other]))
    assert "other-1" in both["runs_loss"] and "other-1" not in both["loss"]
    page = Page(to_html(replace(shown, curves=[other]))).text
    assert "Training of the runs" in page and "Training of linear-1" not in page
