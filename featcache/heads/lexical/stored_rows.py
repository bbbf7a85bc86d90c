"""Sparse rows in temporary files, for more texts than should be held in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featcache.errors import HeadError
from featcache.system.sharded_array import slices_of

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

AT_ONCE = 8192  # rows that are in memory


class StoredRows:
    """float32 `[N, V]`; a slice of it, or an array of row numbers, is a `csr_matrix`.

    The files are in the folder for temporary files (`TMPDIR`), take 8 bytes a number, and are gone when the
    object is.

    Args:
        parts: the rows, in order.
        columns: V.

    Raises:
        HeadError: they cannot be written.
    """

    def __init__(self, parts: Iterable[csr_matrix], columns: int) -> None:
        self._columns: IO[bytes] = tempfile.TemporaryFile(prefix="featcache-words-")  # noqa: SIM115
        self._values: IO[bytes] = tempfile.TemporaryFile(prefix="featcache-words-")  # noqa: SIM115
        counts = [np.zeros(1, np.int64)]
        try:
            for part in parts:
                part.sort_indices()
                self._columns.write(np.ascontiguousarray(part.indices, np.int32).data)
                self._values.write(np.ascontiguousarray(part.data, np.float32).data)
                counts.append(np.diff(part.indptr))
            self._columns.flush()
            self._values.flush()
        except OSError as error:
            raise HeadError(
                f"the n-grams of the texts cannot be written to {tempfile.gettempdir()}: {error.strerror}",
                hint="set TMPDIR to a folder with more room",
            ) from error
        self._ends = np.cumsum(np.concatenate(counts))
        self.shape = (len(self._ends) - 1, columns)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> csr_matrix:
        from scipy.sparse import csr_matrix, vstack

        if not isinstance(rows, slice):
            numbers = np.arange(len(self))[rows]
            order = np.argsort(numbers, kind="stable")
            edges = np.searchsorted(numbers[order], np.arange(0, len(self) + AT_ONCE, AT_ONCE))
            some = [order[first:last] for first, last in pairwise(edges) if first < last]
            found = [self._slice_of(numbers[each]) for each in some]
            return csr_matrix(vstack(found, format="csr")[np.argsort(order)] if found else (0, self.shape[1]))
        begin, end, _ = rows.indices(len(self))
        first, last = self._ends[begin], self._ends[max(begin, end)]
        columns, values = np.empty(last - first, np.int32), np.empty(last - first, np.float32)
        for file, array in ((self._columns, columns), (self._values, values)):
            file.seek(4 * int(first))
            file.readinto(array.data)  # type: ignore[attr-defined]
        pointers = self._ends[begin : max(begin, end) + 1] - first
        return csr_matrix((values, columns, pointers), shape=(len(pointers) - 1, self.shape[1]))

    def _slice_of(self, numbers: np.ndarray) -> csr_matrix:
        """Rows by their numbers, ascending, of which no two are far from each other."""
        return self[int(numbers[0]) : int(numbers[-1]) + 1][numbers - numbers[0]]

    def change(self, values_of: Callable[[csr_matrix], np.ndarray]) -> None:
        """Replace the numbers of all rows by what `values_of` makes of some of them."""
        for rows, part in parts_of(self):
            changed = np.ascontiguousarray(values_of(part), np.float32)
            self._values.seek(4 * int(self._ends[rows.start]))
            self._values.write(changed.data)
        self._values.flush()


SparseRows: TypeAlias = "csr_matrix | StoredRows"


def parts_of(words: SparseRows) -> Iterator[tuple[slice, csr_matrix]]:
    """The rows, some at a time where they are stored."""
    if not isinstance(words, StoredRows):
        yield slice(0, words.shape[0]), words
        return
    for rows in slices_of(len(words), AT_ONCE):
        yield rows, words[rows]
