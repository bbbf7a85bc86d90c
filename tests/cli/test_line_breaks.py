"""Where lines of Chinese may end, in texts, tables and help."""

from __future__ import annotations

from io import StringIO
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from featcache_cli import console
from featcache_cli.line_breaks import NOT_FIRST, NOT_LAST, break_offsets, broken, wrapped


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("验证集上最好的运行", 8, ["验证集上", "最好的运", "行"]),
        ("测试集太小了，结论不稳。", 12, ["测试集太小", "了，结论不", "稳。"]),  # "，" and "。" begin no line
        ("见（附录一）的表", 8, ["见（附录", "一）的表"]),
        ("我们见（附录）", 8, ["我们见", "（附录）"]),  # "（" ends no line
        ("他说：「好！」就走", 10, ["他说：", "「好！」就", "走"]),
        ("使用 exact-depth-1 运行", 15, ["使用", "exact-depth-1", "运行"]),
        ("请运行 featcache report", 17, ["请运行 featcache", "report"]),  # no break in a word
        ("准确率 86.60 %，基线", 16, ["准确率 86.60 %，", "基线"]),
        ("置信区间（95 % 的）", 13, ["置信区间", "（95 % 的）"]),
        ("a word and a word", 8, ["a word", "and a", "word"]),
        ("see 95 % of it", 6, ["see", "95 %", "of it"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("", 4, [""]),
    ],
)
def test_examples(text: str, width: int, lines: list[str]) -> None:
    assert wrapped(text, width) == lines


def test_later_lines_are_indented() -> None:
    lines = wrapped("  run    从一个带标签的文件得到结论", 17, " " * 9)
    assert lines == ["  run    从一个带", "         标签的文", "         件得到结", "         论"]


@given(st.text("中文字，。（）a 1%", max_size=40), st.integers(4, 20))
def test_no_line_is_too_wide_and_nothing_is_lost(text: str, width: int) -> None:
    ends = [0, *break_offsets(text, width), len(text)]
    lines = [text[one:two] for one, two in pairwise(ends)]
    assert "".join(lines) == text
    assert all(cell_len(line.rstrip()) <= width for line in lines)
    for one, two in pairwise(lines):
        good = two[0] not in NOT_FIRST and one[-1] not in NOT_LAST
        assert good or cell_len(one) >= width - 1  # a piece without a place for a break is cut anywhere


def test_styles_stay_on_their_characters() -> None:
    text = Text("结论：") + Text("测试集太小了", style="bold") + Text("。")
    made = broken(text, 8)
    assert made.plain == "结论：测\n试集太小\n了。"
    styled = "".join(made.plain[span.start : span.end] for span in made.spans if span.style == "bold")
    assert styled.replace("\n", "") == "测试集太小了"


def printed(renderable: Any, width: int, **options: Any) -> list[str]:
    where = StringIO()
    console._console(file=where, width=width).print(renderable, **options)
    return [line.rstrip() for line in where.getvalue().splitlines() if line.strip()]


def test_paragraphs_and_cells_of_tables_end_their_lines_so() -> None:
    said = "数据检查没有发现问题，可以放心使用。"
    assert printed(said, 20) == ["数据检查没有发现问", "题，可以放心使用。"]
    assert printed(said, 20, soft_wrap=True) == [said]
    shown = console.table("", "说明")
    shown.add_row("*", said)
    cells = printed(shown, 24)
    assert all(cell_len(line) <= 24 for line in cells)
    parts = [line.removeprefix(" *").strip() for line in cells[2:]]
    assert "".join(parts) == said and not any(part[0] in NOT_FIRST for part in parts)


def test_english_lines_end_as_rich_ends_them() -> None:
    said = "Run a frozen Transformer once over your texts, cache its features, train heads in seconds."
    assert printed(said, 30) == [
        "Run a frozen Transformer once",
        "over your texts, cache its",
        "features, train heads in",
        "seconds.",
    ]
