"""Sheets of Excel files; their cells are texts, as in a csv file of the same sheet."""

from __future__ import annotations

import datetime
import io
import itertools
import zipfile
from collections.abc import Iterator

from featcache.data.formats.archive import check_unpacked_size
from featcache.data.formats.delimited import columns_of
from featcache.data.formats.lines import DataPath, ReadLimits, Row, first_line, reading
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings


def excel_rows(
    path: DataPath, name: str, data: DataSettings, limits: ReadLimits, *, header: bool
) -> tuple[list[str], Iterator[Row]]:
    """The columns and rows of the sheet that `data` names, else of the only one that is not empty.

    Raises:
        SourceError: the file cannot be read, or several sheets hold rows and none is named.
        UsageError: the extra is not installed, or there is no such sheet.
    """
    records = ((number, fields) for number, fields in _records(path, name, data.sheet) if any(fields))
    sample = list(itertools.islice(records, limits.sample_rows))
    if not sample:
        raise SourceError(f"{name} is empty", hint="leave it out, or name a file with rows")
    columns, headed = columns_of([fields for _, fields in sample], name, data, header=header)
    return columns, _rows(columns, itertools.islice(itertools.chain(sample, records), int(headed), None))


def _rows(columns: list[str], records: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    for number, (line, fields) in enumerate(records, 1):
        yield Row(number, line, dict(zip(columns, fields, strict=True)))


def _records(path: DataPath, name: str, sheet: str | None) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every row of the sheet."""
    try:
        from python_calamine import CalamineError, CalamineWorkbook
    except ImportError:
        raise UsageError(
            f"{name}: Excel files need one more package", hint="pip install 'featcache[excel]'"
        ) from None
    with reading(name):
        content = path.read_bytes()
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            check_unpacked_size(parts, name)
    try:
        book = CalamineWorkbook.from_filelike(io.BytesIO(content))
        if sheet is not None and sheet not in book.sheet_names:
            names = ", ".join(book.sheet_names)
            raise UsageError(f"--sheet {sheet}: {name} has no such sheet", hint=f"its sheets are: {names}")
        filled = [one for one in book.sheet_names if book.get_sheet_by_name(one).height]
        if sheet is None and len(filled) > 1:
            what = f"{name} has {len(filled)} sheets with rows: {', '.join(filled)}"
            raise SourceError(what, hint="name one: --sheet NAME")
        chosen = sheet or next(iter(filled), None)
        rows = [] if chosen is None else book.get_sheet_by_name(chosen).to_python(skip_empty_area=False)
    except CalamineError as error:
        raise SourceError(
            f"cannot read {name}: {first_line(error)}", hint="open it in Excel and save it again, or as csv"
        ) from None
    yield from ((number, list(map(_text, row))) for number, row in enumerate(rows, 1))


def _text(cell: object) -> str:
    """A cell as a csv file has it: whole numbers without a fraction, times as in ISO 8601."""
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else repr(cell)
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    return str(cell)
