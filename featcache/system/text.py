"""Texts: what a tokenizer accepts, and what a page or a terminal can show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from featcache.errors import SourceError

# Control characters except tab and line break, direction changes, surrogates, non-characters.
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_BLOCKS = "▁▂▃▄▅▆▇█"


def check_text(text: Any, name: str) -> None:
    """Refuse what a tokenizer cannot encode.

    Raises:
        SourceError: not a string, only white space, or lone surrogates; the message begins with `name`.
    """
    if not isinstance(text, str):
        raise SourceError(f"{name} is {type(text).__name__}, not a text")
    if not text.strip():
        raise SourceError(f"{name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(f"{name} is no valid Unicode: {error.reason} at {error.start}") from None


def readable(text: str) -> str:
    """`text` with U+FFFD instead of lone surrogates, control characters and direction changes."""
    return _UNREADABLE.sub("\ufffd", text)


def clip(text: str, cells: int) -> str:
    """`text` in at most so many terminal cells, with U+FFFD instead of characters that cannot be printed."""
    from rich.cells import cell_len, set_cell_size

    safe = "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
    return safe if cell_len(safe) <= cells else set_cell_size(safe, cells - 1).rstrip() + "…"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Values as a row of blocks, lowest to highest; of more than `width` values evenly spaced ones."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)
