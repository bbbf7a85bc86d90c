"""Rows of parquet and Arrow files, and of what `save_to_disk` wrote, in record batches."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from featcache.data.formats.lines import DataPath, first_line, reading
from featcache.errors import SourceError

SAVED_STATE = "state.json"  # of a folder that `save_to_disk` wrote

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class TableFile:
    """A file or folder of record batches; a file in a zip file is unpacked until this object is closed.

    Attributes:
        schema: of the columns.
        is_arrow: it is no parquet file.
        group_rows: rows of each row group; Arrow files are one group.

    Raises:
        SourceError: it cannot be read.
    """

    def __init__(self, path: DataPath) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._unpacked: TemporaryDirectory[str] | None = None
        self._parquet: pq.ParquetFile | None = None
        self._table: pa.Table | None = None
        name = str(path)
        try:
            with reading(name):
                if isinstance(path, zipfile.Path):
                    self._unpacked = TemporaryDirectory(prefix="featcache-")
                    path = _unpack(path, Path(self._unpacked.name))
                self.is_arrow = path.is_dir() or path.suffix.lower() in (".arrow", ".feather")
                if not self.is_arrow:
                    self._parquet = pq.ParquetFile(path)
                    self.schema = self._parquet.schema_arrow
                    metadata = self._parquet.metadata
                    groups = range(metadata.num_row_groups)
                    self.group_rows = [metadata.row_group(group).num_rows for group in groups]
                else:
                    self._table = pa.concat_tables([_mapped(one) for one in _arrow_files(path)])
                    self.schema, self.group_rows = self._table.schema, [len(self._table)]
        except pa.ArrowException as error:
            raise SourceError(
                f"cannot read {name}: {first_line(error)}",
                hint="the file is damaged, or another program wrote it: write it again",
            ) from None

    def batches(
        self, rows: int, groups: range | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        if self._parquet is not None:
            yield from self._parquet.iter_batches(rows, None if groups is None else list(groups), columns)
        elif self._table is not None:
            table = self._table if columns is None else self._table.select(columns)
            yield from table.to_batches(max_chunksize=rows)

    def close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
        self._table = None
        if self._unpacked is not None:
            self._unpacked.cleanup()


def _unpack(path: zipfile.Path, folder: Path) -> Path:
    target = folder / path.name
    with path.open("rb") as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return target


def is_saved_dataset(path: Path) -> bool:
    """Whether `save_to_disk` of one dataset wrote this folder."""
    return (path / SAVED_STATE).is_file()


def _arrow_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        state = json.loads((path / SAVED_STATE).read_bytes())
        names = [str(one["filename"]) for one in state["_data_files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise SourceError(
            f"cannot read the saved dataset {path}: {first_line(error)}",
            hint="save it again: dataset.save_to_disk",
        ) from None
    if not names or any("/" in name or "\\" in name for name in names):
        raise SourceError(
            f"cannot read the saved dataset {path}: {SAVED_STATE} names no files of it",
            hint="save it again: dataset.save_to_disk",
        )
    return [path / name for name in names]


def _mapped(path: Path) -> pa.Table:
    """An Arrow file of either form; its rows stay on disk."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        return pa.ipc.open_file(source).read_all()
    source.seek(0)
    return pa.ipc.open_stream(source).read_all()


def record_batches(
    file: TableFile,
    path: DataPath,
    rows: int,
    *,
    columns: Sequence[str] | None = None,
    groups: range | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of some columns and row groups, by default of all, at most `rows` at a time."""
    import pyarrow as pa

    try:
        yield from file.batches(rows, groups, columns)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"cannot read {path}: {first_line(error)}",
            hint="the file is damaged, or another program wrote it: write it again",
        ) from None


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
