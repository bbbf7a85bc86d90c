"""Texts: what a tokenizer accepts, and what is made of one that a terminal, a page, Markdown or a csv shows.

Labels, names and texts come from files of others. Each way out has one function here, and HTML Jinja's own
escaping; JSON, parquet and jsonl hold what there is.
"""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from featcache.errors import SourceError

# Control characters except tab and line break, line separators, direction changes, surrogates, no characters.
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$!])")
# What Excel, LibreOffice and Google Sheets take for a formula, with the wide signs of Chinese
# keyboards; and what of that they do not calculate: numbers, and signs alone.
_FORMULA = re.compile(r"[=+\-@\t\r＝＋－＠]")
_NO_FORMULA = re.compile(r"[+-]?\d+([.,]\d+)*([eE][+-]?\d+)?%?|[=+\-@\s＝＋－＠]*")
_HUB_ID = re.compile(r"[\w\-][\w.\-]*/[\w.\-]+(:[\w.\-]+)?")  # a data set's may end in `:config`
_FOLDERS = re.compile(r"(?<![\w/])(?:[A-Za-z]:|~)?[/\\](?:[^\s/\\:'\"]+[/\\])+")
_FIGURES = re.compile(r"[-+±]?\d[\d,.]*( \S+){0,3}")  # with a unit or an interval; more is a sentence
CELL_SIGNS = 16  # that may stand in one cell of a terminal: letters with their accents
_BLOCKS = "▁▂▃▄▅▆▇█"


def check_text(text: Any, name: str) -> None:
    """Refuse what a tokenizer cannot encode.

    Raises:
        SourceError: not a string, only white space, or lone surrogates; the message begins with `name`.
    """
    if not isinstance(text, str):
        raise SourceError(f"{name} is {type(text).__name__}, not a text", hint="give a str")
    if not text.strip():
        raise SourceError(f"{name} is empty", hint="a text has at least one letter or sign")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{name} is no valid Unicode: {error.reason} at {error.start}",
            hint="it was cut within a character, or read in another encoding: repair the text",
        ) from None


def readable(text: str) -> str:
    """`text` with U+FFFD instead of lone surrogates, control characters and direction changes."""
    return _UNREADABLE.sub("\ufffd", text)


def normalised(text: str) -> str:
    """What two texts have in common that differ in case, width (NFKC) or white space alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def one_line(text: str) -> str:
    """`text` on one line of a terminal or a file of lines: `readable`, with a blank for any white space."""
    return " ".join(readable(text).split())


def markdown_text(text: str) -> str:
    """`text` in Markdown: on one line, without a meaning for Markdown or HTML."""
    escaped = _MARKDOWN.sub(r"\\\1", one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """A table for a notebook: cells are `readable` and have no meaning for HTML; numbers are on the right."""

    def line(kind: str, cells: Sequence[str]) -> str:
        made = (
            f'<{kind} style="text-align: {"right" if _FIGURES.fullmatch(cell) else "left"}">'
            f"{html.escape(readable(cell))}</{kind}>"
            for cell in cells
        )
        return f"<tr>{''.join(made)}</tr>"

    above = f"<caption>{html.escape(readable(title))}</caption>" if title else ""
    body = "".join(line("td", cells) for cells in rows)
    return f"<table>{above}<thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"


def plain_json(text: str) -> str:
    """A JSON text with escapes for what `readable` replaces; it means the same."""
    return _UNREADABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def spreadsheet_cell(text: str) -> str:
    """`text` as a cell that a spreadsheet shows and does not calculate.

    What begins like a formula and is no number gets a `'` in front.
    """
    formula = _FORMULA.match(text) and not _NO_FORMULA.fullmatch(text)
    return f"'{text}" if formula else text


def last_part(path: str) -> str:
    """The name of the file or folder at a path or URL, of this system or another."""
    return next((part for part in reversed(re.split(r"[/\\]+", path)) if part), "")


def short_name(name: str) -> str:
    """A model or a data set as files for others name it.

    A hub id as it is, of an endpoint the model without the address, of all else `last_part`.
    """
    if name.startswith("openai+"):
        return name.partition("#")[2]
    return name if _HUB_ID.fullmatch(name) else last_part(name)


def without_folders(text: str) -> str:
    """A message with the last part alone of every absolute path in it."""
    with suppress(OSError, RuntimeError):  # a working folder that is gone, a user without a home
        for folder in (Path.cwd(), Path.home()):
            text = text.replace(f"{folder}{os.sep}", "")
    return _FOLDERS.sub("", text)


def clip(text: str, cells: int) -> str:
    """`text` in at most so many terminal cells, with U+FFFD instead of characters that cannot be printed."""
    from rich.cells import cell_len, set_cell_size

    begin = text[: CELL_SIGNS * cells]  # of a text of a megabyte
    safe = "".join(sign if sign.isprintable() else "\ufffd" for sign in begin)
    fits = len(begin) == len(text) and cell_len(safe) <= cells
    return safe if fits else set_cell_size(safe, cells - 1).rstrip() + "…"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Values as a row of blocks, lowest to highest; of more than `width` values evenly spaced ones."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)
