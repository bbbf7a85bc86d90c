"""The report in Chinese: the same page with other words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from featcache.reporting import html as report_html
from featcache.reporting.build import build_report
from featcache.reporting.figures import figures
from featcache.reporting.html import to_html
from featcache.reporting.markdown import to_markdown
from featcache.reporting.number_report import build_number_report, number_html, number_markdown
from featcache.runs.run import Run, list_runs
from featcache.translation.language import in_language
from tests.support.chinese import english_words
from tests.support.reports import report


class Shown(HTMLParser):
    """The text that people read or hear, and the tags with their classes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[tuple[str, str | None]] = []
        self.language: str | None = None
        self.hidden = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append((tag, own.get("class")))
        self.hidden = tag if tag in ("style", "code") else self.hidden
        self.language = own["lang"] if tag == "html" else self.language
        self.text += [own[name] or "" for name in ("aria-label",) if name in own]

    def handle_endtag(self, tag: str) -> None:
        self.hidden = "" if tag == self.hidden else self.hidden

    def handle_data(self, data: str) -> None:
        self.text += [] if self.hidden else [data]


def test_the_page_has_the_same_parts_and_no_english_words() -> None:
    english = Shown(to_html(report()))
    with in_language("zh"):
        html, markdown = to_html(report()), to_markdown(report())
    chinese = Shown(html)
    assert english.language == "en" and chinese.language == "zh-CN"
    strip = [tag for tag in chinese.tags if tag[0] not in ("g", "path", "use", "defs", "clippath", "rect")]
    assert strip == [
        tag for tag in english.tags if tag[0] not in ("g", "path", "use", "defs", "clippath", "rect")
    ]
    # What the report document says is data here: its sentences are made in `build_report`.
    given = "right on no text is twice in a split The nearest train text is labelled test cdcdcdcd"
    assert english_words(" ".join(chinese.text), given) == []
    assert english_words(markdown, given) == []
    for words in ("混淆矩阵", "数据检查", "多数类基线", "可疑标签", "全部预测为“差评”"):
        assert words in html, words


def test_hostile_texts_are_escaped_in_chinese_too() -> None:
    from tests.support.reports import ALERT, HOSTILE

    with in_language("zh"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_html, "figures", lambda _: {})
        html, markdown = to_html(report(HOSTILE, " ".join(HOSTILE))), to_markdown(report(HOSTILE, ALERT))
    assert ALERT not in html and html.count("&lt;script&gt;") >= 12
    assert "<" not in markdown and "](" not in markdown.replace("\\](", "")


def test_figures_have_the_words_of_the_language() -> None:
    with in_language("zh"):
        drawn = figures(report())
    assert "置信度，%" in drawn["reliability"] and "<title" in drawn["risk"]
    shown = " ".join(re.findall(r">([^<>]+)<", "".join(drawn.values())))
    assert english_words(shown) == []


def test_sentences_of_a_built_report_are_in_the_language(runs: list[Run]) -> None:
    english = build_report(runs, inspect=False)
    with in_language("zh"):
        chinese = build_report(runs, inspect=False)
    assert english.verdict[0].startswith(f"{runs[0].name} is right on")
    assert "在测试集的 200 行中判对" in chinese.verdict[0]
    assert english_words("".join(chinese.verdict), "bad good", *(run.name for run in runs)) == []
    assert len(chinese.verdict) == len(english.verdict)
    assert chinese.headline == english.headline and chinese.comparisons == english.comparisons


def test_a_report_about_numbers(rated: Path) -> None:
    runs = list_runs(rated / "reports")
    with in_language("zh"):
        found = build_number_report(runs)
        html, markdown = number_html(found), number_markdown(found)
    shown = Shown(html)
    assert shown.language == "zh-CN"
    names = (
        "MAE RMSE",
        *(run.name for run in runs),
        *(one.text or "" for one in found.errors),
        "train validation test",
    )
    assert english_words(" ".join(shown.text), *names, found.about.data or "", found.about.model or "") == []
    assert english_words(markdown, *names, found.about.data or "", found.about.model or "") == []
