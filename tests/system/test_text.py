"""Texts as a page and a terminal can show them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from featcache.system.text import clip, readable, sparkline


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
