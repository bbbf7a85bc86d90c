"""The page and the Markdown: hostile texts stay texts, nothing is asked of the network, figures are whole."""

from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import UsageError
from featcache.reporting import figures as report_figures
from featcache.reporting import html as report_html
from featcache.reporting.figures import FIGURES, cells, clip, figures
from featcache.reporting.html import EXCERPT, excerpt, seconds, to_html
from featcache.reporting.markdown import escape, to_markdown
from featcache.system.documents import tidied
from featcache.system.text import readable

ALERT = "<script>alert(1)</script>"
HOSTILE = (
    ALERT,
    '"><img src=x onerror=alert(1)>',
    "</style></svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "| a | b |\n\n# head [x](javascript:alert(1)) ![](http://example.com/a.png)",
    "$\\frac{1}{$ #0a0b0c &amp; \x00 \x1b[31m \ud800 \u202e",
    "_一个很长很长的标签名称",
)


def document(names: tuple[str, ...] = ("差评", "好评"), text: str = "房间很干净") -> dict[str, Any]:
    """A report with every part in it; `names` and `text` wherever a source's words may stand."""
    first, last = names[0], names[-1]
    row = {"split": "test", "row": 3, "row_hash": "ab" * 32, "label": first, "text": text}
    line = {"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 10}
    bins = [{"from": 0.4, "to": 0.6, "rows": 5, "confidence": 0.55, "accuracy": 0.6, "interval": (0.3, 0.9)}]
    change = {"difference": 0.02, "interval": [0.01, 0.03], "p": 0.01, "tie": False}
    run = {
        "run": "linear-1", "head": "linear", "view": "last/mean", "validation_accuracy": 0.9, "accuracy": 0.9,
        "interval": [0.8, 0.95], "macro_f1": 0.9, "log_loss": 0.3, "ece": None, "seconds": 3.0, "epochs": 3,
        "parameters": 10,
    }  # fmt: skip
    score = {
        "split": "test", "rows": 50, "removed": 5, "whole": 0.9, "whole_interval": [0.8, 0.95],
        "without": 0.8, "without_interval": [0.7, 0.9], "leaked": 1.0,
    }  # fmt: skip
    curve = {"run": "linear-1", "best_epoch": 2, "epoch": [1, 2, 3]}
    curve |= {
        f"{part}_{what}": [0.5, 0.6, 0.7] for part in ("train", "validation") for what in ("loss", "accuracy")
    }
    return tidied(
        {
            "format": 1,
            "split": "test",
            "about": {
                "run": "linear-1", "head": "linear", "view": "last/mean", "task": "single-label",
                "model": text,
                "revision": None, "data": text, "rows": {"train": 100}, "truncated": {}, "prompt": text,
                "max_length": 512, "settings": {"lr": 0.1}, "seed": 0, "label_names": list(names),
                "best_epoch": 2, "parameters": 10, "created": "2026", "calibration": None, "split": "test",
            },
            "headline": {
                "accuracy": {"value": 0.9, "interval": [0.8, 0.95]}, "ece": {"value": None, "interval": None},
            },
            "runs": [run, run | {"run": "exact-1"}],
            "base": "linear-1",
            "comparisons": [
                {"run": "exact-1", "rows": 50, "only_right": [1, 2], "accuracy": change, "macro_f1": change}
            ],
            "curves": [curve],
            "learning_curves": [
                {"head": "exact", "metric": "accuracy", "split": "test",
                 "points": [[10, 0.5, 0.4, 0.6], [100, 0.7, 0.6, 0.8]]}
            ],
            "confusion": [[5 if i == j else 1 for j in names] for i in names],
            "classes": [line | {"label": name} for name in names],
            "reliability": bins,
            "confidence": {"edges": [0.0, 0.5, 1.0], "right": [0, 4], "wrong": [1, 1]},
            "mistakes": [
                row | {"predicted": last, "confidence": 0.99, "tokens": 9, "cut": True, "label_doubted": True}
            ],
            "lengths": [{"from": 1, "to": 9, "rows": 5, "accuracy": 0.5, "interval": (0.3, 0.9)}],
            "truncated": {
                "cut": {"rows": 2, "accuracy": 0.5, "interval": (0.1, 0.9)},
                "whole": {"rows": 3, "accuracy": 1.0, "interval": (0.4, 1.0)},
            },
            "map": {
                "method": "pca", "explained": 0.3, "rows": 3, "x": [0.0, 1.0, 2.0], "y": [0.0, 1.0, 0.0],
                "label": [first, last, first], "right": [True, False, True],
            },
            "cost": {
                "epochs": 100, "assumed_epochs": True, "batch": 50, "texts_once": 10, "tokens_once": 100,
                "tokens_encoded": 90, "extraction_seconds": 3.0, "heads": 2, "head_seconds": 1.0,
                "texts_tutorial": 1000, "tokens_tutorial": 20000, "tokens_a_second": 10.0,
                "tutorial_seconds": 2000.0, "factor": 200.0,
            },
            "data": {
                "view": "last/mean", "threshold": 0.95, "label_names": list(names), "splits": {"test": 50},
                "balance": {"test": dict.fromkeys(names, 5)},
                "truncation": {
                    "test": {"rows": 50, "cut": 2, "max_length": 512, "tokens": 99, "median_tokens": 5.0,
                             "longest_tokens": 512, "cut_by_label": dict.fromkeys(names, 1)}
                },
                "duplicates": {
                    "splits": {"test": {"rows": 50, "texts": 49, "equal": 1, "near": 0}},
                    "near_pairs": 1, "near_list": [{"cosine": 0.97, "rows": [row, row]}],
                    "equal_list": [row | {"times": 2}], "conflicting_texts": 1, "conflicting_rows": 2,
                    "conflict_list": [row],
                },
                "leakage": {
                    "pairs": [
                        {"split": "test", "in": "train", "rows": 5, "equal": 4, "near": 1, "other_label": 1}
                    ],
                    "list": [row | {"cosine": 1.0, "as": row}], "scores": [score],
                },
                "label_errors": {
                    "rows": 1, "splits": {"test": 1}, "unjudged": 0, "not_looked_for": "",
                    "list": [row | {"suggested": last, "belief": 0.01}],
                },
                "outliers": {"rows": 1, "beyond": 0.8, "neighbours": 10, "list": [row | {"distance": 0.9}]},
                "no_texts": "",
            },
            "without_leaks": score,
            "notes": [text],
        },
        text=readable,
    )  # fmt: skip


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


def test_the_page_is_whole_and_shows_everything() -> None:
    page = check_page(to_html(document()))
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
    html = to_html(document())
    assert "prefers-color-scheme: dark" in html and "@media print" in html and "Noto Sans CJK SC" in html
    assert to_html(document()) == html  # the same report, the same bytes


def test_hostile_texts_and_labels_stay_texts() -> None:
    shown = document(HOSTILE, " ".join(HOSTILE))
    page = check_page(to_html(shown))
    assert sum(tag == "svg" for tag, _ in page.tags) == len(FIGURES)
    assert page.text.count(ALERT) >= 12 and "{{ 7 * 7 }}" in page.text and "\x1b" not in page.text
    markdown = to_markdown(shown)
    markdown.encode("utf-8")
    assert "<" not in markdown and "](" not in markdown.replace("\\](", "")


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=30), st.text(min_size=1, max_size=60))
def test_any_text_and_label_make_a_page(label: str, text: str) -> None:
    shown = document((label, "other" + label), text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_html, "figures", lambda _: {})  # these take a second
        check_page(to_html(shown))
    table = [line for line in to_markdown(shown).splitlines() if line.startswith("| test 3 |")]
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table]
    assert bars == [7, 6, 4, 5]  # mistakes, label errors, conflicts, outliers


def test_a_megabyte_is_shortened() -> None:
    shown = document(("标" * 1_000_000, "b"), "长" * 1_000_000)
    assert len(to_html(shown)) < 500_000 and len(to_markdown(shown)) < 100_000
    assert excerpt("x" * EXCERPT) == "x" * EXCERPT and excerpt("x" * (EXCERPT + 1)).endswith("x…")


def test_a_report_of_almost_nothing() -> None:
    bare = document()
    for name in ("lengths", "truncated", "map", "cost", "data", "without_leaks", "confusion"):
        bare[name] = None
    for name in ("curves", "learning_curves", "classes", "reliability", "mistakes", "notes", "comparisons"):
        bare[name] = []
    bare["runs"] = bare["runs"][:1]
    page = check_page(to_html(bare))
    assert [tag for tag, _ in page.tags].count("svg") == 1  # the histogram
    assert "Runs side by side" not in page.text and to_markdown(bare).startswith("# linear-1")


@pytest.mark.parametrize("classes", [1, 5, 40, 300])
def test_figures_of_many_classes_are_drawn(classes: int) -> None:
    names = tuple(f"第{number}类" for number in range(classes))
    shown = document(names if classes > 1 else ("一类",))
    drawn = figures(shown)
    for name in ("confusion", "classes", "map_labels"):
        svg = ElementTree.fromstring(drawn[name])
        width, height = (float(part) for part in svg.attrib["viewBox"].split()[2:])
        assert width < 400 and height < 900
    assert sum(len(svg) for svg in drawn.values()) < 2_000_000


def test_figures_take_the_pages_colours_and_letters() -> None:
    for name, svg in figures(document()).items():
        ElementTree.fromstring(svg)
        used = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(href="|url\()#\w+', "", svg)))
        assert not used, (name, used)
        assert "currentColor" in svg and "<text" in svg and "<metadata" not in svg and "DOCTYPE" not in svg
    assert "差评" in figures(document())["confusion"]


def test_several_runs_are_drawn_together() -> None:
    shown = document()
    shown["curves"] = [shown["curves"][0] | {"run": f"run-{number}"} for number in range(12)]
    svg = figures(shown)["loss"]
    assert "run-0" in svg and "run-7" in svg and "run-8" not in svg  # as many as there are colours
    assert "validation</text>" not in svg


def test_drawing_changes_nothing_of_matplotlib() -> None:
    import matplotlib as mpl

    before = copy.deepcopy(dict(mpl.rcParams))
    figures(document())
    assert dict(mpl.rcParams) == before


def test_without_matplotlib_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib") as caught:
        report_figures.figures(document())
    assert caught.value.hint == "pip install 'featcache[report]'"


@given(st.text(), st.integers(2, 30))
def test_clipped_labels_fit(text: str, most: int) -> None:
    shown = clip(text, most)
    assert cells(shown) <= most and "\n" not in shown
    if cells(" ".join(text.split())) <= most:
        assert shown == " ".join(text.split())


def test_words() -> None:
    assert cells("ab好评") == 6 and clip("好评好评", 5) == "好评…"
    assert [seconds(value) for value in (0.123, 12.34, 75, 3700, 200_000, None)] == [
        "0.12 s", "12.3 s", "1 min 15 s", "1 h 1 min", "56 h", "-",
    ]  # fmt: skip
    assert escape("a|b\n<i>*x*") == "a\\|b &lt;i&gt;\\*x\\*"
