"""The values of one JSON array as texts, one after the other, however long the array is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from featcache.errors import SourceError

# A whole string, or what gives an array its structure; a lone quote begins a string that is not whole yet.
_MARKS = re.compile(r'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)


def elements(blocks: Iterator[str], name: str, most: int) -> Iterator[tuple[int, str]]:
    """Line and text of each value of the array, whether it is valid or not; one that is empty is left out.

    Values are told apart by quotes, brackets and commas alone, so that a broken one costs no other.

    Args:
        blocks: the file, in parts of any length; it begins with `[`, blanks aside.
        name: of the file, for messages.
        most: characters of one value, and so what is held of the file beside one block.

    Raises:
        SourceError: the array does not end, or is not all of the file; names the line.
    """
    held, begin, at, depth, line = "", 0, 0, 0, 1
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
    raise _broken(f"{name}, line {line + _blank_lines(held[begin:])}: from there on the array is not closed")


def _blank_lines(value: str) -> int:
    """How many line ends stand before what is no blank."""
    return value.count("\n", 0, len(value) - len(value.lstrip()))


def _require_end(mark: str, rest: str, blocks: Iterator[str], where: str) -> None:
    if mark != "]":
        raise _broken(f"{where}: a {mark} closes the array")
    if rest.strip() or any(block.strip() for block in blocks):
        raise _broken(f"{where}: the file goes on where its array ends")


def _broken(what: str) -> SourceError:
    return SourceError(what, hint="the file is cut short, or a quote or bracket is not closed before there")
