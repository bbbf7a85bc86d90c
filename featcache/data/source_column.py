"""A further column of a source, beside texts and labels: weights of rows, or keys that say their order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from featcache.data.arrow_table import open_tables, quiet_datasets
from featcache.errors import SourceError
from featcache.settings import DataSettings

BATCH = 10_000  # rows


@dataclass(frozen=True)
class SourceColumn:
    """The values of a column, one for each row of a split's source; they stay on disk until they are read.

    Attributes:
        encoded: the cells are JSON.
    """

    name: str
    cells: Any
    encoded: bool

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, row: int) -> object:
        return self._value(self.cells[row])

    def __iter__(self) -> Iterator[object]:
        for start in range(0, len(self.cells), BATCH):
            yield from map(self._value, self.cells[start : start + BATCH])

    def _value(self, cell: Any) -> object:
        return json.loads(cell) if self.encoded and cell is not None else cell


def read_column(data: DataSettings, split: str, column: str, flag: str) -> SourceColumn:
    """A column of the source of a split, by the readers that read its texts.

    Args:
        flag: which names the column, for the hint of an error.

    Raises:
        SourceError: no such column.
    """
    # Read as labels are: these may be texts or numbers in every format.
    asked = replace(data, label_column=column, label_columns=None, label_separator=None, label_names=None)
    try:
        with quiet_datasets():
            table = open_tables(asked)[0][split]()
    except SourceError as error:
        if "--label-column" not in (error.hint or ""):
            raise
        raise SourceError(error.what, hint=f"name a column of the data: {flag}") from None
    cells = table.dataset.select_columns([table.columns.label])[table.columns.label]
    return SourceColumn(column, cells, table.encoded)
