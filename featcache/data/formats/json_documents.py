"""Tables in one JSON object, in every orientation in which pandas writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from featcache.data.columns import USUAL_NAMES
from featcache.data.formats.lines import Lines, first_line
from featcache.errors import SourceError
from featcache.settings import DataSettings

_MOST_CHARS = 512 << 20  # of a document, which is held in memory
_LINES_HINT = "JSON lines can have any size; in pandas: df.to_json(path, orient='records', lines=True)"


def document_rows(lines: Lines, data: DataSettings) -> list[dict[str, Any]] | None:
    """The rows of a file that is one object; None for JSON lines, of which nothing is read then.

    Raises:
        SourceError: the file is one object, and no table.
    """
    with lines.preview():
        first = list(islice((text for _, text in lines if text.strip()), 2))
    if not first:
        return None
    if len(first) == 1:
        try:
            value = json.loads(first[0])
        except (ValueError, RecursionError):
            return None
        return table_of(value, data) if isinstance(value, dict) else None
    if first[0].strip() != "{":  # as an object begins that is written with line breaks
        return None
    parts, chars = list[str](), 0
    for _, text in lines:
        parts.append(text)
        chars += len(text)
        if chars > _MOST_CHARS:
            what = f"{lines.name}: one JSON object of more than {_MOST_CHARS >> 20} MiB"
            raise SourceError(what, hint=_LINES_HINT)
    try:
        value = json.loads("".join(parts))
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{lines.name}: not valid JSON: {first_line(error)}",
            hint="one list of objects is needed, or one object a line in a file that ends in .jsonl",
        ) from None
    rows = table_of(value, data)
    if rows is None:
        raise SourceError(f"{lines.name}: one JSON object, in which no table is found", hint=_LINES_HINT)
    return rows


def table_of(value: Mapping[str, Any], data: DataSettings) -> list[dict[str, Any]] | None:
    """The rows of a table: `split`, `table`, `columns` or `index`, lists by column, or one list of rows."""
    if value.keys() <= {"columns", "index", "data"} and _lists(value.get("columns"), value.get("data")):
        rows = value["data"]
        if all(isinstance(row, list) for row in rows):
            return [dict(zip(map(str, value["columns"]), row, strict=False)) for row in rows]
    if not value:
        return None
    parts = list(value.values())
    if all(isinstance(part, dict) for part in parts):
        return _nested(value, data)
    same = len(parts) > 1 and _lists(*parts) and len({len(part) for part in parts}) == 1
    if same and not any(isinstance(item, (list, dict)) for part in parts for item in part):
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
    rows_of = [part for part in parts if _lists(part) and part and all(isinstance(row, dict) for row in part)]
    return rows_of[0] if len(rows_of) == 1 else None


def _nested(value: Mapping[str, Any], data: DataSettings) -> list[dict[str, Any]] | None:
    """Rows by column, or columns by row: usual or named columns tell which; None for neither."""
    inner = list(dict.fromkeys(key for part in islice(value.values(), 1000) for key in part))
    if _knows(value, data) and not _knows(inner, data):
        return [{name: part.get(key) for name, part in value.items()} for key in _keys(value)]
    return list(value.values()) if _knows(inner, data) and not _knows(value, data) else None


def _keys(value: Mapping[str, Any]) -> list[str]:
    """The keys of all columns, in the order of the first column that has them."""
    return list(dict.fromkeys(key for part in value.values() for key in part))


def _knows(names: Iterable[str], data: DataSettings) -> bool:
    named = [data.text_column, data.pair_column, data.label_column, *(data.label_columns or ())]
    parts = [part for name in named if name for part in (name, *name.split(","))]
    known = USUAL_NAMES | {part.strip().lower() for part in parts}
    return any(name.strip().lower() in known for name in names)


def _lists(*values: object) -> bool:
    return all(isinstance(value, list) for value in values)
