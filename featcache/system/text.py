"""Texts: what a tokenizer accepts, and what a page can show."""

from __future__ import annotations

import re
from typing import Any

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


def readable(text: str) -> str:
    """`text` with U+FFFD instead of lone surrogates, control characters and direction changes."""
    return _UNREADABLE.sub("\ufffd", text)
