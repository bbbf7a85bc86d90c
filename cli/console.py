"""What is printed: data to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featcache.translation.language import gettext as _
from featcache.translation.language import pgettext
from featcache.translation.sentences import translated, translated_lines
from featcache_cli.line_breaks import broken

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment
    from rich.table import Table

    from featcache.errors import FeatcacheError

MARKS = {"point": "●", "bar": "│", "line": "·", "beyond": "○", "axis": "┤"}
ASCII_MARKS = {"point": "o", "bar": "|", "line": ".", "beyond": "x", "axis": "|"}


def out() -> Console:
    """Results for people, on stdout; rich leaves colour out off a terminal and under NO_COLOR."""
    return _console()


def err() -> Console:
    """Progress, notes and errors, on stderr."""
    return _console(stderr=True)


def _console(**where: Any) -> Console:
    """A console that prints texts as they are: no markup, no emoji codes, no highlighting, no escapes."""
    from rich.console import Console
    from rich.text import Text

    from featcache.system.text import readable

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """The reader of the output has closed it, which is no error."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
            """Measured as it is shown."""
            return super().render_str(readable(text), **options)

        def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            """Texts of others hold no control characters; those of rich are in segments of their own.

            Lines end where `broken` ends them.
            """
            options = options or self.options
            if isinstance(renderable, str):
                renderable = self.render_str(renderable)
            if isinstance(renderable, Text) and not (renderable.no_wrap or options.no_wrap):
                renderable = broken(renderable, options.max_width)
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=readable(segment.text))

    return Plain(highlight=False, markup=False, emoji=False, **where)


def print_result(args: argparse.Namespace, document: Any, show: Callable[[], None]) -> None:
    """The result of a command: `document` as JSON with `--json`, else what `show` prints.

    Args:
        document: JSON values and dataclasses, see `featcache.system.documents.json_document`.
    """
    if args.json:
        print_json(document)
    else:
        show()


def print_json(document: Any) -> None:
    """One JSON document on stdout, in UTF-8 whatever the encoding of stdout is; what is no number is null."""
    from featcache.system.documents import json_document, tidied
    from featcache.system.text import plain_json

    text = json.dumps(tidied(json_document(document)), ensure_ascii=False, indent=1, allow_nan=False)
    text = plain_json(text)
    # Bytes of a file name that are not UTF-8 are lone surrogates in Python: escaped, as JSON allows.
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")
    sys.stdout.buffer.flush()


def print_error(error: FeatcacheError, *more: str) -> None:
    """What was wrong in bold; below it the hint and `more`, what this command can do about it."""
    console = err()
    console.print(_("error: "), end="", style="bold red")
    console.print(translated(error.what), soft_wrap=True, style="bold")
    for line in (*(error.hint or "").splitlines(), *more):
        console.print("       " + translated_lines(line), soft_wrap=True)


def note(text: str, *, quiet: bool = False) -> None:
    """One line to stderr."""
    if not quiet:
        err().print(translated_lines(text), soft_wrap=True, style="dim")


def table(*headers: str) -> Table:
    """A plain table; a column whose header begins with `>` is right-aligned and never folded."""
    from rich.box import Box
    from rich.table import Table

    rule_below_head = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
    made = Table(box=rule_below_head, padding=0, pad_edge=False, header_style="bold")
    for header in headers:
        right = header.startswith(">")
        made.add_column(header[right:], justify="right" if right else "left", no_wrap=right, overflow="fold")
    return made


def columns(*headers: str) -> tuple[str, ...]:
    """Headers for `table`, in the language that is spoken."""
    return tuple(">" * one.startswith(">") + pgettext("column", one.removeprefix(">")) for one in headers)


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
    signs = MARKS if _can_show("".join(MARKS.values()), encoding) else ASCII_MARKS
    bottom, top = min(mark.low for mark in marks), max(mark.high for mark in marks)
    if top - bottom < 1e-3:  # a tenth of a point
        beyond = max(top + 5e-4 - 1, 0) - max(5e-4 - bottom, 0)  # of shares from 0 to 1
        bottom, top = bottom - 5e-4 - beyond, top + 5e-4 - beyond
    left, right = math.log(min(mark.x for mark in marks)), math.log(max(mark.x for mark in marks))
    margin = len("100.00 |")
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
        for number in range(row(mark.high), row(mark.low) + 1):
            cells[number][column(mark.x)] = signs["bar"]
    for mark in marks:
        cells[row(mark.y)][column(mark.x)] = signs[mark.kind]
    step = (top - bottom) / (height - 1)
    drawn = [
        f"{100 * (top - step * number):6.2f} {signs['axis']}{''.join(row_cells)}".rstrip()
        for number, row_cells in enumerate(cells)
    ]
    return [*drawn, " " * margin + _labels(sorted({mark.x for mark in marks}), column, columns)]


def _labels(values: Sequence[float], column: Callable[[float], int], columns: int) -> str:
    """The x values under their columns: the first, the last, and those between that have room."""
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
