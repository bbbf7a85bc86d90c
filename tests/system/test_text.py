"""Texts as a page and a terminal can show them."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from featcache.system.text import (
    clip,
    html_table,
    last_part,
    markdown_text,
    one_line,
    plain_json,
    readable,
    short_name,
    sparkline,
    spreadsheet_cell,
    without_folders,
)

HOSTILE = st.text() | st.text(st.sampled_from("=+-@\t\r\n'\"`#<>|*_[]\\&\x1b\x9b\u202e\ud800 a1.,%"))


@given(st.text() | st.text(st.characters(categories=["Cs", "Cc"])))
def test_readable_texts_can_be_written_and_shown(text: str) -> None:
    shown = readable(text)
    shown.encode("utf-8")
    assert len(shown) == len(text)
    assert not any(ord(sign) < 32 and sign not in "\t\n" for sign in shown)
    assert readable(shown) == shown


def test_readable_leaves_chinese_and_emoji_alone() -> None:
    text = "房间很干净,\t价格便宜。\n👍🏽 naïve العربية"
    assert readable(text) == text
    assert readable("a\x00b\ud800c\u202ed\x1b[31m") == "a�b�c�d�[31m"


@given(st.text(), st.integers(2, 30))
def test_clip_fits_any_text(text: str, most: int) -> None:
    shown = clip(text, most)
    assert cell_len(shown) <= most and shown.isprintable()
    if text.isprintable() and cell_len(text) <= most:
        assert shown == text


def test_clip_counts_two_cells_for_a_chinese_character() -> None:
    assert clip("好评好评", 5) == "好评…" and clip("好评", 4) == "好评"
    assert clip("a\x1b[2J", 9) == "a\ufffd[2J"


def test_sparkline_has_at_most_width_blocks() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█" and sparkline([3, 3]) == "▁▁"
    assert sparkline(range(1000), width=8) == "▁▂▃▄▅▆▇█"


@given(HOSTILE)
def test_one_line_is_one_line_without_escapes(text: str) -> None:
    shown = one_line(text)
    assert not {*shown} & {*"\n\r\t\x1b\x9b\u2028\u202e\ud800"} and shown.splitlines() in ([], [shown])


@given(HOSTILE)
def test_markdown_text_has_no_signs_of_its_own(text: str) -> None:
    shown = markdown_text(text)
    assert "\n" not in shown and not {*"<>"} & {*shown}
    for place, sign in enumerate(shown):
        assert sign not in "`*_[]#|" or shown[place - 1] == "\\"


@given(st.dictionaries(HOSTILE, HOSTILE | st.lists(HOSTILE)))
def test_plain_json_means_the_same(document: dict[str, object]) -> None:
    text = plain_json(json.dumps(document, ensure_ascii=False, indent=1))
    assert json.loads(text) == document and readable(text) == text


@given(HOSTILE)
def test_a_cell_is_the_text_or_the_text_behind_a_quote(text: str) -> None:
    cell = spreadsheet_cell(text)
    assert cell in (text, f"'{text}")
    assert cell != text or text[:1] not in ("=", "@", "\t", "\r") or not text.strip("=@+- \t\r\n＝＋－＠")


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "-好", "+8 1"])
def test_what_a_spreadsheet_would_calculate_gets_a_quote(text: str) -> None:
    out = io.StringIO()
    csv.writer(out).writerow([spreadsheet_cell(text)])
    assert next(csv.reader(io.StringIO(out.getvalue(), newline=""))) == [f"'{text}"]


@pytest.mark.parametrize(
    "text", ["-5", "+5", "-1.5", "-1,000.5", "1e-5", "-5%", "-", "--", "好", "a=1", " =1", "'=1", "-1.5E+10"]
)
def test_numbers_and_signs_alone_stay(text: str) -> None:
    assert spreadsheet_cell(text) == text


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("hfl/rbt3", "hfl/rbt3"), ("bert-base-chinese", "bert-base-chinese"), ("org/data:zh", "org/data:zh"),
        ("/home/me/bert", "bert"), ("~/bert", "bert"), ("./bert/", "bert"), ("../bert", "bert"),
        ("a/b/c", "c"),
        ("C:\\Users\\me\\bert", "bert"), ("s3://bucket/secret/train.csv", "train.csv"), ("", ""), ("/", ""),
    ],
)  # fmt: skip
def test_short_names_have_no_folders(name: str, short: str) -> None:
    assert short_name(name) == short


def test_messages_without_folders() -> None:
    assert last_part("data/train.csv") == last_part("D:\\x\\train.csv") == "train.csv"
    here = f"cannot read {Path.cwd() / 'a b' / 'x.h5'}: No such file"
    assert str(Path.cwd()) not in without_folders(here) and "x.h5: No such file" in without_folders(here)
    elsewhere = "'/home/me/x.h5' is 1/2 of C:\\me\\y.h5, hfl/rbt3"
    assert without_folders(elsewhere) == "'x.h5' is 1/2 of y.h5, hfl/rbt3"


def test_figures_stand_on_the_right_in_tables_for_notebooks_and_sentences_on_the_left() -> None:
    cells = (
        "86.60",
        "-1.5 [-2.9, -0.2]",
        "1,204",
        "35 s",
        "7 test rows are few",
        "good",
        "2026-11-30 is a date",
    )
    made = html_table(("",), [(cell,) for cell in cells])
    sides = re.findall(r'<td style="text-align: (\w+)">', made)
    assert sides == ["right"] * 4 + ["left"] * 3
