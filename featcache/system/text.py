"""Texts: what a tokenizer accepts, and what JSON and a page can show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from featcache.errors import SourceError

# Control characters except tab and line break, direction changes, surrogates, non-characters.
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


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


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy numbers become Python's, NaN and infinity None, texts `readable`."""
    if isinstance(value, Mapping):
        return {readable(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def readable(text: str) -> str:
    """`text` with U+FFFD instead of lone surrogates, control characters and direction changes."""
    return _UNREADABLE.sub("\ufffd", text)
