"""A curve drawn with characters: measured points with their intervals, a fitted line, what lies beyond."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MARKS = {"point": "●", "bar": "│", "line": "·", "beyond": "○"}
ASCII = {"point": "o", "bar": "|", "line": ".", "beyond": "x"}


@dataclass(frozen=True)
class Mark:
    """A point at x with its interval; `kind` is `point` (measured) or `beyond` (extrapolated)."""

    x: float
    y: float
    low: float
    high: float
    kind: str = "point"


def plot(
    marks: Sequence[Mark],
    line: Sequence[tuple[float, float]],
    *,
    width: int = 76,
    height: int = 12,
    encoding: str = "utf-8",
) -> list[str]:
    """Lines of text, none wider than `width`: x on a log scale, y in percent at the left.

    Args:
        marks: at least one; every x above 0.
        line: further points (x, y), drawn under the marks.
        encoding: of the terminal; ASCII characters are drawn where it lacks others.
    """
    signs = MARKS if _can_show("".join(MARKS.values()), encoding) else ASCII
    bottom, top = min(mark.low for mark in marks), max(mark.high for mark in marks)
    if top - bottom < 1e-3:  # a tenth of a point
        bottom, top = bottom - 5e-4, top + 5e-4
    left, right = math.log(min(mark.x for mark in marks)), math.log(max(mark.x for mark in marks))
    margin = 8  # "100.00 " and the axis
    columns = max(width - margin, 10)
    cells = [[" "] * columns for _ in range(height)]

    def column(x: float) -> int:
        share = (math.log(x) - left) / (right - left) if right > left else 0.5
        return min(max(round(share * (columns - 1)), 0), columns - 1)

    def row(y: float) -> int:
        return min(max(round((top - y) / (top - bottom) * (height - 1)), 0), height - 1)

    for x, y in line:
        cells[row(y)][column(x)] = signs["line"]
    for mark in marks:
        for place in range(row(mark.high), row(mark.low) + 1):
            cells[place][column(mark.x)] = signs["bar"]
    for mark in marks:
        cells[row(mark.y)][column(mark.x)] = signs[mark.kind]
    axis = "┤" if signs is MARKS else "|"
    step = (top - bottom) / (height - 1)
    drawn = [f"{100 * (top - step * n):6.2f} {axis}{''.join(line)}".rstrip() for n, line in enumerate(cells)]
    return [*drawn, " " * margin + _labels(sorted({mark.x for mark in marks}), column, columns)]


def _labels(values: Sequence[float], column: Callable[[float], int], columns: int) -> str:
    """The x values under their columns: the first and the last, of the others those that have room."""
    text = [" "] * columns
    for value in dict.fromkeys([values[0], values[-1], *values]):
        label = f"{value:,.0f}"[:columns]
        first = min(max(column(value) - len(label) // 2, 0), columns - len(label))
        around = text[max(first - 1, 0) : first + len(label) + 1]
        if not "".join(around).strip():
            text[first : first + len(label)] = label
    return "".join(text).rstrip()


def _can_show(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
