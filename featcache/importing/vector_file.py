"""Vectors in a file, a folder or the memory, read some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.data.formats.lines import reading
from featcache.errors import SourceError
from featcache.fingerprint import VectorsPart
from featcache.system.hashes import FileState

BLOCK = 4 << 20  # bytes that are read at a time
NUMBERS = ("float16", "float32", "float64", "bfloat16")  # types of the numbers in vectors
AS_FLOAT32 = "write them as float32: vectors.astype('float32')"


@dataclass(frozen=True)
class VectorFile:
    """N vectors of D numbers.

    Attributes:
        where: the file, with the array or column, for messages.
        dtype: of the numbers, one of `NUMBERS`.
        read: the rows from `start` to `stop`, as arrays `[n, D]` in order; bfloat16 comes as float32.
        path: of a file; None of a folder, and in memory.
        opened: the state of that file before anything was read of it.
        column: the values of another column or array of the file by its name, one a row; None where the file
            can have no other.
    """

    where: str
    rows: int
    width: int
    dtype: str
    read: Callable[[int, int], Iterator[np.ndarray]]
    column: Callable[[str], Iterable[object]] | None = None
    path: Path | None = None
    opened: FileState | None = None

    def require_unchanged(self) -> None:
        """Refuse a file that was written or replaced since it was opened.

        Raises:
            SourceError: it was, or it is gone.
        """
        if self.path is None:
            return
        with reading(self.path):
            now = FileState.of(self.path.stat())
        if now != self.opened:
            raise SourceError(
                f"{self.where} changed while it was read",
                hint="run the same command again once no program writes to it",
            )

    @property
    def storage(self) -> str:
        """The type in which they are kept: float16 as it is, all others as float32."""
        return "float16" if self.dtype == "float16" else "float32"


def said_of(part: VectorsPart) -> str:
    """`vectors:NAME` with what its user says of it."""
    return f"vectors:{part.name}" + (f" ({part.model})" if part.model else "")


def check_matrix(where: str, shape: Sequence[int], dtype: str) -> None:
    """Refuse what are no vectors.

    Raises:
        SourceError: no matrix, an empty one, or one of other numbers.
    """
    if dtype not in NUMBERS:
        raise SourceError(
            f"{where} holds {dtype}; vectors are {', '.join(NUMBERS[:3])}, in safetensors also bfloat16",
            hint=AS_FLOAT32,
        )
    if len(shape) != 2 or 0 in shape:
        raise SourceError(
            f"{where} has the shape {list(shape)}; vectors are a matrix [rows, numbers], none of them 0",
            hint="one vector for each text: vectors.reshape(len(texts), -1)",
        )


def choose_array(where: str, arrays: Mapping[str, tuple[Sequence[int], str]], asked: str | None) -> str:
    """The name of the array of vectors: the one that is asked for, else the only matrix of numbers.

    Args:
        arrays: shape and dtype by name.

    Raises:
        SourceError: there is none of that name, no matrix, or more than one.
    """
    known = ", ".join(arrays) or "none"
    if asked is not None:
        if asked not in arrays:
            raise SourceError(f"{where} has no array {asked!r}", hint=f"--array is one of: {known}")
        return asked
    found = [name for name, (shape, dtype) in arrays.items() if len(shape) == 2 and dtype in NUMBERS]
    if len(found) == 1 or len(arrays) == 1:  # of a single array its shape or type is refused
        return (found or [*arrays])[0]
    what = f"has {len(found)} arrays of vectors" if found else "has no array of vectors"
    raise SourceError(
        f"{where} {what}; its arrays: {known}",
        hint=f"name one: --array {found[0] if found else 'NAME'}; vectors are matrices of float numbers",
    )


def row_ranges(start: int, stop: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """The rows from `start` to `stop`, about `BLOCK` bytes at a time."""
    step = max(1, BLOCK // max(row_bytes, 1))
    for begin in range(start, stop, step):
        yield begin, min(begin + step, stop)


def read_ahead(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same blocks, of which the next one is read while one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block


def in_memory(vectors: np.ndarray) -> VectorFile:
    """An array `[N, D]` of float16, float32 or float64.

    Raises:
        SourceError: it is no such array.
    """
    array, where = np.asarray(vectors), "the array of vectors"
    check_matrix(where, array.shape, array.dtype.name)

    def read(start: int, stop: int) -> Iterator[np.ndarray]:
        for begin, end in row_ranges(start, stop, array.shape[1] * array.itemsize):
            yield array[begin:end]

    rows, width = array.shape
    return VectorFile(where, rows, width, array.dtype.name, read)
