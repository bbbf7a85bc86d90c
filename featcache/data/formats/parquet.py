"""Rows of parquet files, in record batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.data.formats.lines import first_line, reading
from featcache.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file at `path`.

    Raises:
        SourceError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with reading(path):
            return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise SourceError(f"cannot read {path}: {first_line(error)}") from None


def record_batches(
    file: pq.ParquetFile,
    path: Path,
    rows: int,
    *,
    columns: Sequence[str] | None = None,
    groups: range | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of some columns and row groups, by default of all, at most `rows` at a time."""
    import pyarrow as pa

    try:
        yield from file.iter_batches(rows, None if groups is None else list(groups), columns)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"cannot read {path}: {first_line(error)}") from None


def batch_values(batch: pa.RecordBatch, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a batch by column; a text that is not UTF-8 becomes a lone surrogate."""
    try:
        values: list[dict[str, Any]] = batch.select(columns).to_pylist()
    except UnicodeDecodeError:
        return [{name: _value(batch.column(name)[row]) for name in columns} for row in range(len(batch))]
    return values


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return "\udcff"


def class_names(schema: pa.Schema) -> Mapping[str, tuple[str, ...]]:
    """Names of the columns of ClassLabel, or of lists of it, which `datasets` notes in the metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {
            name: kind[0] if isinstance(kind, list) else kind.get("feature", kind)
            for name, kind in features.items()
        }
        return {
            name: tuple(kind["names"])
            for name, kind in kinds.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return {}  # written by another program
