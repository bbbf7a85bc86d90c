"""Columns of a table of runs, of which as many are shown as fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from featcache.translation.language import pgettext

if TYPE_CHECKING:
    from rich.text import Text


class RunColumn(NamedTuple):
    """One column of the table; those of importance 0 are always shown, the others as far as they fit."""

    header: str
    cells: list[str | Text]
    importance: int = 0
    right: bool = True

    @property
    def title(self) -> str:
        """The header in the language that is spoken, with the sign of `table` for a column on the right."""
        return ">" * self.right + pgettext("column", self.header) if self.header else ""

    @property
    def width(self) -> int:
        from rich.cells import cell_len

        return max(cell_len(str(cell)) for cell in (self.title.removeprefix(">"), *self.cells))


def fitting(columns: list[RunColumn], width: int) -> list[RunColumn]:
    """The most important columns, as many as fit, in their order, with a blank around each."""
    kept = {0}
    for level in sorted({column.importance for column in columns}):
        tried = [column for column in columns if column.importance in {*kept, level}]
        if sum(column.width + 1 for column in tried) + 1 <= width:
            kept.add(level)
    return [column for column in columns if column.importance in kept]
