"""A first look at all vectors of a split, before anything is written: are they usable, and which are they?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from featcache.errors import SourceError
from featcache.importing.vector_file import VectorFile, read_ahead
from featcache.system.progress import OnProgress, Progress, ignore

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
            with np.errstate(over="ignore"):  # what does not fit becomes infinite, which `check` refuses
                stored = np.ascontiguousarray(chosen, dtype=STORED[self.storage])
            yield stored

    def check(self, split: str, on_progress: OnProgress = ignore) -> str:
        """XXH3-128 of the stored bytes of all vectors.

        Raises:
            SourceError: a number is not finite, or all vectors are equal.
        """
        digest, done, first, differ = xxhash.xxh3_128(), 0, None, False
        for block in self.blocks():
            if (bad := first_bad(block)) is not None:
                raise unusable(self, int(self.rows[done + bad]))
            if first is None:
                first = block[0].copy()
            differ = differ or bool((block != first).any())
            digest.update(block.reshape(-1).view(np.uint8).data)
            done += len(block)
            on_progress(Progress("check", split, done, len(self.rows)))
        if not differ and done > 1:
            raise SourceError(
                f"all {done:,} vectors of {split} in {self.file.where} are equal, whatever the text",
                hint="was each text encoded by itself? look at the vectors of two texts",
            )
        return digest.hexdigest()


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
            if np.isfinite(
                np.dot(flat, flat)
            ):  # one pass over the memory; a sum that is too large is looked at
                return True
    return bool(np.isfinite(block).all())
