"""Where a line of text may end: at a blank, and between Chinese characters as Chinese typesetting has it.

rich ends lines at blanks alone, so that Chinese, which has few, is cut anywhere. Here a line does not begin
with a closing mark or a unit as in `95 %`, nor end with an opening mark.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

NOT_FIRST = frozenset("。，、！？：；）》」』〉】〕’”…—％·~,.!?:;)]}%")
NOT_LAST = frozenset("（《「『〈【〔‘“([{")


def break_offsets(text: str, width: int) -> list[int]:
    """Where to divide a text of one line, so that no part is wider than `width` terminal cells.

    A part that has no place for a break and is too wide is divided anywhere. Blanks at the end of a part do
    not count.
    """
    from rich.cells import cell_len

    cells = [cell_len(character) for character in text]
    before = [0, *accumulate(cells)]  # cells before each character
    offsets: list[int] = []
    start = 0  # of the line
    for begin, end in _pieces(text, cells):
        last = begin + len(text[begin:end].rstrip())
        if begin > start and before[last] - before[start] > width:
            offsets.append(begin)
            start = begin
        while before[last] - before[start] > width:  # one piece alone
            start = max(bisect_right(before, before[start] + width) - 1, start + 1)
            offsets.append(start)
    return offsets


def broken(text: Text, width: int) -> Text:
    """A text with a new line wherever a line of it that is too wide must end."""
    from rich.cells import cell_len

    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        if cell_len(line.plain) <= width:
            lines.append(line)
            continue
        for part in line.divide(break_offsets(line.plain, width)):
            part.rstrip()
            lines.append(part)
    return text.blank_copy("\n").join(lines)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The lines of a paragraph, none wider than `width`; all but the first begin with `indent`."""
    from rich.cells import cell_len

    first = next(iter(break_offsets(text, width)), len(text))
    rest = text[first:]
    places = [0, *break_offsets(rest, width - cell_len(indent)), len(rest)] if rest else []
    return [text[:first].rstrip(), *(indent + rest[one:two].rstrip() for one, two in pairwise(places))]


def _pieces(text: str, cells: Sequence[int]) -> list[tuple[int, int]]:
    """The parts of a text between two places where a line may end, with the blanks after them."""
    inner = (at for at in range(1, len(text)) if _may_break(text, at, cells))
    return list(pairwise([0, *inner, len(text)]))


def _may_break(text: str, at: int, cells: Sequence[int]) -> bool:
    """Whether a line may end before the character at a place."""
    before, after = text[at - 1], text[at]
    if after.isspace() or after in NOT_FIRST:
        return False
    wide = cells[at - 1] > 1 or cells[at] > 1
    return before.isspace() or (wide and before not in NOT_LAST)
