"""A column in several shards, and matrices side by side, that are read like one array."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

RESIDENT = 1 << 27  # approximate bytes of mapped shards that may stay in this process's memory
PAGES = 1 << 16  # bytes that the system maps around one row that is read


class ShardedColumn:
    """Rows `[N, ...]` of one column in all shards, in order.

    It supports what readers of features use: `shape`, `ndim`, `size`, `dtype`, `nbytes`, `len`, indexing of
    rows by number, slice, list or mask, and `numpy.asarray`. Rows that are read are copies. A shard is opened
    and checked when one of its rows is read first; the maps of all shards together take about `RESIDENT`
    bytes of memory at most.

    Args:
        open_rows: shard number -> its rows as a checked memory map.
        ends: rows before each shard, and in all: 0, n0, n0 + n1, ...
        shape: of a single row, e.g. `(768,)`; `()` for labels.
    """

    def __init__(
        self,
        open_rows: Callable[[int], np.ndarray],
        ends: Sequence[int],
        dtype: DTypeLike,
        shape: tuple[int, ...],
    ) -> None:
        self.dtype = np.dtype(dtype)
        self._row_shape = shape
        self._ends = np.asarray(ends, np.int64)
        self._rows = range(int(self._ends[-1]))
        self._maps = _ShardMaps(open_rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._row_shape)

    @property
    def ndim(self) -> int:
        return 1 + len(self._row_shape)

    @property
    def size(self) -> int:
        return len(self._rows) * int(np.prod(self._row_shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"ShardedColumn(shape={self.shape}, dtype={self.dtype}, shards={len(self._ends) - 1})"

    def __iter__(self) -> Iterator[np.ndarray]:
        step = max(1, PAGES // max(self.nbytes // max(len(self), 1), 1))
        for first in range(0, len(self), step):
            yield from self[first : first + step]

    def part(self, rows: slice) -> ShardedColumn:
        """Neighbouring rows as a column, without reading them."""
        if rows.step not in (None, 1):
            raise IndexError("a part consists of neighbouring rows")
        found = object.__new__(ShardedColumn)
        found.__dict__ |= {**self.__dict__, "_rows": self._rows[rows]}
        return found

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array of rows in several shards is always a copy")
        return np.asarray(self[:], dtype)

    def astype(self, dtype: DTypeLike) -> np.ndarray:
        """All rows as an array of type `dtype`."""
        return self[:].astype(dtype, copy=False)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            rows = self._rows[key]
            return self._between(rows) if rows.step == 1 else self._gathered(np.asarray(rows, np.int64))
        if isinstance(key, tuple) or key is None or key is Ellipsis or isinstance(key, (bool, np.bool_)):
            return self._by_other_key(key)
        if hasattr(key, "__index__") and not isinstance(key, np.ndarray):
            try:
                row = self._rows[operator.index(key)]
            except IndexError:
                raise IndexError(f"row {key} of {len(self)}") from None
            one: np.ndarray = self._between(range(row, row + 1))[0]
            return one
        numbers = self._numbers(key)
        found = self._gathered(numbers.reshape(-1) + self._rows.start)
        return found.reshape(*numbers.shape, *self._row_shape)

    def _by_other_key(self, key: Any) -> np.ndarray:
        """Index by any other key; unless it begins with a slice of rows, all rows are read."""
        found: np.ndarray
        if isinstance(key, tuple) and key and isinstance(key[0], slice):
            found = self[key[0]][(slice(None), *key[1:])]
        else:
            found = self[:][key]
        return found

    def _numbers(self, key: Any) -> np.ndarray:
        """The rows of a list, an array or a mask as numbers from 0, int64 of any shape."""
        rows = np.asarray(key)
        if rows.dtype == np.bool_:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows.shape} for {len(self)} rows")
            return np.flatnonzero(rows)
        if rows.dtype.kind not in "iu" and rows.size:
            raise IndexError(f"rows are chosen by whole numbers or a mask, not by {rows.dtype}")
        rows = rows.astype(np.int64)
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            odd = rows[(rows < -len(self)) | (rows >= len(self))].flat[0]
            raise IndexError(f"row {odd} of {len(self)}")
        return np.where(rows < 0, rows + len(self), rows)

    def _between(self, rows: range) -> np.ndarray:
        """Neighbouring rows by their numbers in the whole column."""
        found = np.empty((len(rows), *self._row_shape), self.dtype)
        number, done = int(np.searchsorted(self._ends, rows.start, side="right")) - 1, 0
        while done < len(rows):
            start = rows.start + done - int(self._ends[number])
            part = found[done : done + int(self._ends[number + 1] - self._ends[number]) - start]
            part[...] = self._maps.of(number, part.nbytes)[start : start + len(part)]
            number, done = number + 1, done + len(part)
        return found

    def _gathered(self, rows: np.ndarray) -> np.ndarray:
        """Rows in any order by their numbers in the whole column, int64 `[M]`."""
        found = np.empty((len(rows), *self._row_shape), self.dtype)
        shards = np.searchsorted(self._ends, rows, side="right") - 1
        for number in np.unique(shards):
            picked = np.flatnonzero(shards == number)
            mapped = self._maps.of(int(number), PAGES * len(picked))
            found[picked] = mapped[rows[picked] - self._ends[number]]
        return found


class JoinedColumns:
    """The columns of matrices `[N, D1]`, `[N, D2]`, ... as one matrix `[N, D1 + D2 + ...]`.

    It supports what readers of features use, as `ShardedColumn` does: nothing is copied until rows are read,
    and rows that are read are copies.

    Args:
        parts: arrays, memory maps or sharded columns with the same number of rows.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = tuple(parts)
        if len({len(part) for part in parts}) != 1 or any(part.ndim != 2 for part in parts):
            raise ValueError(f"matrices {[list(part.shape) for part in parts]} do not have the same rows")
        self.dtype = np.result_type(*(part.dtype for part in parts))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), sum(part.shape[1] for part in self.parts)

    @property
    def ndim(self) -> int:
        return 2

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.parts[0])

    def part(self, rows: slice) -> np.ndarray:
        """Neighbouring rows, without reading them."""
        return join_columns([part_of(part, rows) for part in self.parts])

    def astype(self, dtype: DTypeLike) -> np.ndarray:
        """All rows as an array of type `dtype`."""
        return self[:].astype(dtype, copy=False)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array of several matrices is always a copy")
        return np.asarray(self[:], dtype)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, others = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        if rows is None or rows is Ellipsis:  # an axis that is not of rows
            whole: np.ndarray = self[:][key]
            return whole
        found = np.concatenate([np.asarray(part[rows]) for part in self.parts], axis=-1, dtype=self.dtype)
        return found[(..., *others)] if others else found


def join_columns(parts: Sequence[np.ndarray]) -> np.ndarray:
    """`JoinedColumns` of several matrices, for a type checker that wants an array; of a single one itself."""
    return parts[0] if len(parts) == 1 else cast(np.ndarray, JoinedColumns(parts))


def part_of(x: np.ndarray, rows: slice) -> np.ndarray:
    """Neighbouring rows without reading them: a view of an array, or a part of columns read on demand."""
    part = getattr(x, "part", None)  # of a `ShardedColumn` or `JoinedColumns`
    return x[rows] if part is None else cast(np.ndarray, part(rows))


def slices_of(rows: int, at_once: int) -> Iterator[slice]:
    """Slices that cover so many rows, `at_once` at a time."""
    return (slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once))


def as_array(column: ShardedColumn) -> np.ndarray:
    """`column` for a type checker that wants an array; it supports what featcache does with one."""
    return cast(np.ndarray, column)


class _ShardMaps:
    """The mapped shards; all are dropped when they may take more than `RESIDENT` bytes.

    Only a reader that is copying has another reference to a map, so that dropping it frees its memory.
    """

    def __init__(self, open_rows: Callable[[int], np.ndarray]) -> None:
        self.open_rows = open_rows
        self.maps: dict[int, np.ndarray] = {}
        self.touched: dict[int, int] = {}
        self.lock = threading.Lock()

    def of(self, number: int, touched: int) -> np.ndarray:
        """The rows of a shard, of which about `touched` bytes will be read."""
        with self.lock:
            if sum(self.touched.values()) + touched > RESIDENT:
                self.maps.clear()
                self.touched.clear()
            if number not in self.maps:
                self.maps[number] = np.asarray(self.open_rows(number))
            mapped = self.maps[number]
            self.touched[number] = min(self.touched.get(number, 0) + touched, mapped.nbytes)
            return mapped
