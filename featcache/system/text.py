"""What counts as a text."""

from __future__ import annotations

from typing import Any

from featcache.errors import SourceError


def check_text(text: Any, name: str) -> None:
    """Refuse what no tokenizer can make sense of.

    Raises:
        SourceError: not a string, nothing but white space, or lone surrogates; begins with `name`.
    """
    if not isinstance(text, str):
        raise SourceError(f"{name} is {type(text).__name__}, not a text")
    if not text.strip():
        raise SourceError(f"{name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(f"{name} is no valid Unicode: {error.reason} at {error.start}") from None
