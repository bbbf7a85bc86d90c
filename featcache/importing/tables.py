"""Tables with a column of vectors: parquet files, and folders that `datasets` saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.data.arrow_table import open_saved_splits, quiet_datasets
from featcache.data.formats.lines import first_line
from featcache.errors import SourceError
from featcache.importing.vector_file import VectorFile, check_matrix, choose_array, row_ranges

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = 10_000  # rows whose keys are read at a time


def open_parquet(path: Path, asked: str | None = None) -> VectorFile:
    """A column of lists of a parquet file."""
    import pyarrow.parquet as pq

    with _arrow_errors(path):
        file = pq.ParquetFile(path)
        schema, rows = file.schema_arrow, file.metadata.num_rows
    groups = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])

    def batches(name: str, start: int, stop: int, step: int) -> Iterator[pa.Array]:
        """The rows of a column; row groups before them are not read."""
        first = int(np.searchsorted(groups, start, side="right")) - 1
        wanted, done = list(range(first, file.num_row_groups)), int(groups[first])
        with _arrow_errors(path):
            for batch in file.iter_batches(step, row_groups=wanted, columns=[name]):
                low, high = max(start - done, 0), min(stop - done, len(batch))
                done += len(batch)
                if low < high:
                    yield batch.column(0).slice(low, high - low)
                if done >= stop:
                    return

    return _of_table(str(path), schema, rows, asked, batches)


def open_saved(folder: Path, asked: str | None = None, split: str | None = None) -> VectorFile:
    """A column of lists of a folder that `datasets` saved; of several splits that of the name `split`."""
    with quiet_datasets():
        splits = open_saved_splits(folder)
    names = [*splits]
    name = split if split in names else names[0] if len(names) == 1 else None
    if name is None:
        raise SourceError(f"{folder} has the splits {', '.join(names)}", hint="name one: --split train")
    found = splits[name]
    table = found.with_format("arrow")

    def batches(name: str, start: int, stop: int, step: int) -> Iterator[pa.Array]:
        one = table.select_columns([name])
        with _arrow_errors(folder):
            for begin in range(start, stop, step):
                yield from one[begin : min(begin + step, stop)].column(0).chunks

    return _of_table(str(folder), table[:0].schema, len(found), asked, batches)


def _of_table(where: str, schema: pa.Schema, rows: int, asked: str | None, batches: Any) -> VectorFile:
    """The vectors of a table; `batches`: the arrays of a column, from its name, rows and their number."""
    import pyarrow as pa

    lists = {
        field.name: ((rows, 1), _numbers(field.type.value_type))
        for field in schema
        if pa.types.is_list(field.type)
        or pa.types.is_large_list(field.type)
        or pa.types.is_fixed_size_list(field.type)
    }
    if not lists:
        raise SourceError(
            f"{where} has no column of lists; its columns: {', '.join(schema.names)}",
            hint="vectors are lists of numbers, one for each row",
        )
    name = choose_array(where, lists, asked)
    place, dtype = f"column {name} of {where}", lists[name][1]
    check_matrix(place, (rows, 1), dtype)
    first = next(iter(batches(name, 0, 1, 1)))
    width = len(first[0].as_py() or ()) if len(first) else 0
    check_matrix(place, (rows, width), dtype)

    def read(start: int, stop: int) -> Iterator[np.ndarray]:
        step = next(end - begin for begin, end in row_ranges(0, rows, width * np.dtype(dtype).itemsize))
        for values in batches(name, start, stop, step):
            yield _matrix(place, values, width, start)
            start += len(values)

    def column(other: str) -> Iterable[object]:
        if other not in schema.names:
            raise SourceError(f"{where} has no column {other!r}", hint=f"it has {', '.join(schema.names)}")
        for values in batches(other, 0, rows, KEYS):
            yield from values.to_pylist()

    return VectorFile(place, rows, width, dtype, read, column=column)


def _numbers(kind: pa.DataType) -> str:
    """The type of numbers as numpy names it."""
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _matrix(where: str, values: pa.Array, width: int, first: int) -> np.ndarray:
    """Lists of numbers as an array `[n, D]`; `first`: the row of the first one, for messages."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_fixed_size_list(values.type):
        lengths = np.where(np.asarray(values.is_valid()), values.type.list_size, -1)
    else:
        lengths = np.asarray(pc.list_value_length(values).fill_null(-1))
    if (odd := np.flatnonzero(lengths != width)).size:
        number, length = first + int(odd[0]) + 1, int(lengths[odd[0]])
        held = "no vector" if length < 0 else f"a vector of {length:,} numbers, and row 1 has {width:,}"
        raise SourceError(
            f"row {number} of {where} has {held}", hint="each row needs a vector of the same length"
        )
    flat = values.flatten()
    if flat.null_count:
        number = first + int(np.argmax(~np.asarray(flat.is_valid()))) // width + 1
        raise SourceError(f"row {number} of {where} has an empty place", hint=_EACH)
    matrix: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    return matrix


_EACH = "each number of a vector is needed: encode that row again, or leave it out of both files"


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    errors: Sequence[type[Exception]] = (OSError, pa.ArrowException)
    try:
        yield
    except tuple(errors) as error:
        raise SourceError(
            f"cannot read {path}: {first_line(error)}", hint="is the file whole? write it again"
        ) from None
