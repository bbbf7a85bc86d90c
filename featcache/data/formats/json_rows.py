"""Rows of JSON lines, or of one JSON array of objects, which is parsed one value at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from featcache.data.formats.lines import Lines, Row, first_line
from featcache.errors import SourceError

# A whole string, or what gives an array its structure; a lone quote begins a string that is not whole yet.
_MARKS = re.compile(r'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)


def json_rows(lines: Lines, *, array: bool) -> Iterator[Row]:
    """The rows of `lines`; one that is not a JSON object has a problem.

    Args:
        array: the file is one JSON array, of objects or, if its first value is one, of lists; empty values
            between its commas are left out.
    """
    values = elements(lines.blocks(), lines.name, lines.limits.row_chars, lines.next_number)
    number, lists = 0, False
    for line, raw in values if array else lines:
        if raw.strip():
            number += 1
            lists = lists or (array and number == 1 and raw.lstrip().startswith("["))
            content, problem = _parse(raw, lines, lists=lists)
            yield Row(number, line, content, problem=problem)


def _parse(raw: str, lines: Lines, *, lists: bool) -> tuple[dict[str, Any] | None, str | None]:
    """The object that `raw` holds, or what is wrong with it; a list, if `lists`, as column1, column2, ..."""
    if wrong := lines.wrong_encoding(raw):
        return None, wrong
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON: {first_line(error)}"
    if isinstance(value, list) and lists:
        value = {f"column{place}": item for place, item in enumerate(value, 1)}
    return (value, None) if isinstance(value, dict) else (None, f"not a JSON object but {raw.strip()[:40]}")


def elements(blocks: Iterator[str], name: str, most: int, line: int = 1) -> Iterator[tuple[int, str]]:
    """Line and text of each value of the array, valid or not; a blank one is left out.

    Only quotes, brackets and commas separate values, so that a broken value does not affect the others.

    Args:
        blocks: the file, in parts of any length; it begins with `[`, white space aside.
        name: of the file, for messages.
        most: characters of one value, and so what is held of the file beside one block.
        line: number of the line that `blocks` begins with.

    Raises:
        SourceError: the array does not end, or does not end with the file; names the line.
    """
    held, begin, at, depth = "", 0, 0, 0
    for block in blocks:
        held, at, begin = held[begin:] + block, at - begin, 0
        for mark in _MARKS.finditer(held, at):
            if mark[0] == '"':
                at = mark.start()
                break
            at = mark.end()
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
            if not (depth == 0 or (depth == 1 and mark[0] in (",", "["))):
                continue
            value = held[begin : mark.start()]  # blank where the array itself begins
            if value.strip():
                yield line + _blank_lines(value), value.strip()
            line += value.count("\n")
            begin = at
            if depth == 0:
                _require_end(mark[0], held[at:], blocks, f"{name}, line {line}")
                return
        if len(held) - begin > most:
            first = line + _blank_lines(held[begin:])
            raise _broken(f"{name}, line {first}: a value longer than {most >> 20} MiB")
    raise _broken(f"{name}, line {line + _blank_lines(held[begin:])}: the array is not closed from here on")


def _blank_lines(value: str) -> int:
    """How many line ends come before the first character that is not white space."""
    return value.count("\n", 0, len(value) - len(value.lstrip()))


def _require_end(mark: str, rest: str, blocks: Iterator[str], where: str) -> None:
    if mark != "]":
        raise _broken(f"{where}: a {mark} closes the array")
    if rest.strip() or any(block.strip() for block in blocks):
        raise _broken(f"{where}: the file goes on after its array ends")


def _broken(what: str) -> SourceError:
    return SourceError(
        f"{what}: not valid JSON", hint="the file is cut short, or a quote or bracket is not closed before"
    )
