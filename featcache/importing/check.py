"""The vectors and rows of a split on their way to a file: are they usable, and which are they?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from featcache.data.split import Split
from featcache.errors import SourceError
from featcache.fingerprint import RowsPart, row_hashes
from featcache.importing.vector_file import VectorFile, read_ahead
from featcache.system.progress import OnProgress, Progress, ignore

TEXTS = 16_384  # that are read at a time
STORED = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True)
class SplitVectors:
    """The vectors of the rows of one split.

    Attributes:
        rows: int64 `[N]`, ascending: which rows of the file they are.
        storage: `float16` or `float32`.
    """

    file: VectorFile
    rows: np.ndarray
    storage: str

    def blocks(self, part: slice = slice(None)) -> Iterator[np.ndarray]:
        """The vectors of some rows of the split, in order, as arrays `[n, D]` of `storage`."""
        wanted = self.rows[part]
        if not len(wanted):
            return
        begin = int(wanted[0])
        for block in read_ahead(self.file.read(begin, int(wanted[-1]) + 1)):
            low, high = np.searchsorted(wanted, (begin, begin + len(block)))
            inside = wanted[low:high] - begin
            chosen = block if len(inside) == len(block) else block[inside]
            begin += len(block)
            with np.errstate(over="ignore"):  # what does not fit becomes infinite, which `first_bad` finds
                stored = np.ascontiguousarray(chosen, dtype=STORED[self.storage])
            yield stored


class CheckedVectors:
    """The vectors of a split, each checked when it is read, once and in order.

    Args:
        split: its name, for messages.
        stage: of the progress.
    """

    def __init__(
        self, vectors: SplitVectors, split: str, stage: str, on_progress: OnProgress = ignore
    ) -> None:
        self.vectors, self._split, self._stage, self._on_progress = vectors, split, stage, on_progress
        self._digest, self._done = xxhash.xxh3_128(), 0
        self._first: np.ndarray | None = None
        self._differ = False

    def blocks(self, part: slice = slice(None)) -> Iterator[np.ndarray]:
        """The vectors of the next rows, see `SplitVectors.blocks`.

        Raises:
            SourceError: a number is not finite.
        """
        for block in self.vectors.blocks(part):
            if (bad := first_bad(block)) is not None:
                raise unusable(self.vectors, int(self.vectors.rows[self._done + bad]))
            if self._first is None:
                self._first = block[0].copy()
            self._differ = self._differ or bool((block != self._first).any())
            self._digest.update(block.reshape(-1).view(np.uint8).data)
            yield block
            self._done += len(block)
            self._on_progress(Progress(self._stage, self._split, self._done, len(self.vectors.rows)))

    def identity(self) -> str:
        """XXH3-128 of the stored bytes of all vectors, once all were read.

        Raises:
            SourceError: all vectors are equal, or the file changed since it was opened.
        """
        file = self.vectors.file
        file.require_unchanged()
        if not self._differ and self._done > 1:
            raise SourceError(
                f"all {self._done:,} vectors of {self._split} in {file.where} are equal, whatever the text",
                hint="was each text encoded by itself? look at the vectors of two texts",
            )
        return self._digest.hexdigest()


class HashedRows:
    """The row hashes of a split, made when they are read, once and in order."""

    def __init__(self, split: Split) -> None:
        self._split, self._chain = split, hashlib.sha256()

    def blocks(self, part: slice = slice(None)) -> Iterator[np.ndarray]:
        """The hashes of the next rows, uint8 `[n, 32]`."""
        start, stop, _ = part.indices(len(self._split))
        for begin in range(start, stop, TEXTS):
            rows = slice(begin, min(begin + TEXTS, stop))
            hashes = row_hashes(self._split.texts(rows), self._split.pairs(rows))
            self._chain.update(hashes.tobytes())
            yield hashes

    def identity(self) -> RowsPart:
        """Of all rows, once all were read."""
        return RowsPart(len(self._split), self._chain.hexdigest())


def first_bad(block: np.ndarray) -> int | None:
    """The first row of `[n, D]` with a number that is not finite; None where all are."""
    return None if _is_finite(block) else int(np.argmin(np.isfinite(block).all(1)))


def unusable(vectors: SplitVectors, row: int) -> SourceError:
    """What is wrong with the vector of a row of the file, counted from 0, and what to do."""
    (given,) = vectors.file.read(row, row + 1)
    where, number = vectors.file.where, row + 1
    if not np.isfinite(given).all():
        return SourceError(
            f"row {number} of {where} has a number that is not finite (NaN or infinity)",
            hint="encode that text again, or leave the row out of both files",
        )
    return SourceError(
        f"row {number} of {where} has a number that is too large for {vectors.storage}",
        hint="keep them in more digits: --storage float32"
        if vectors.storage == "float16"
        else "divide all vectors by the same number",
    )


def _is_finite(block: np.ndarray) -> bool:
    if block.dtype == np.float32:
        flat = block.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.dot(flat, flat)  # one pass over the memory
        if np.isfinite(squares):
            return True
    return bool(np.isfinite(block).all())  # also of finite numbers whose squares are too large
