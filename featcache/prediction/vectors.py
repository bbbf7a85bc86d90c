"""A head that was trained on imported vectors, and the vectors of the rows of a file to label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.data.formats.lines import Row
from featcache.errors import BadRow, SourceError, UsageError
from featcache.heads.head import Head
from featcache.importing.check import SplitVectors, first_bad, unusable
from featcache.importing.open import open_vectors
from featcache.importing.vector_file import VectorFile
from featcache.prediction.predictor import Predictor, PreparedTexts
from featcache.runs.run import Run


@dataclass(frozen=True, eq=False)
class PreparedVectors(PreparedTexts):
    """The vectors `[N, D]` of N texts, in the type that the head was trained on."""

    vectors: np.ndarray


class VectorPredictor(Predictor):
    """Labels the rows of a file by their vectors, the n-th vector for the n-th row; no text is encoded.

    Raises:
        UsageError: the head reads features of a backbone.
        SourceError: vectors of another length than those of the head.
    """

    def __init__(self, head: Head, file: VectorFile) -> None:
        part = head.encoder.vectors
        if part is None:
            raise UsageError(
                "--vectors: this head reads features of a backbone, which encodes the texts itself",
                hint="leave it out, or name a run on vectors:NAME with --run",
            )
        if file.width != part.width:
            raise SourceError(
                f"{file.where} has vectors of {file.width:,} numbers, and this head reads {part.width:,}",
                hint="encode the texts with the model that made the vectors of its train texts",
            )
        self.encoder, self.head, self.pairs = None, head, None
        self.vectors = SplitVectors(file, np.arange(file.rows), head.encoder.dtype.storage)
        self._blocks: Iterator[np.ndarray] | None = None
        self._read = np.zeros((0, file.width), self.vectors.storage)  # rows of the file from `_first` on
        self._first = 0

    @classmethod
    def of_file(cls, run: Run, path: Path, array: str | None = None) -> VectorPredictor:
        """The head of a run, and the vectors of a file.

        Args:
            array: see `open_vectors`.

        Raises:
            UsageError, SourceError: see `VectorPredictor` and `open_vectors`.
            HeadError: the head cannot be read.
        """
        head = run.head()
        predictor = cls(head, open_vectors(path, array))
        predictor.pairs = run.record.pairs
        found = path.expanduser().stat()
        predictor.inputs = [str(path.expanduser().absolute()), found.st_size, found.st_mtime_ns, array]
        return predictor

    def prepare_rows(self, rows: Sequence[Row], pairs: Sequence[str] | None) -> PreparedTexts:
        """See `Predictor.prepare_rows`; called with later rows each time, or the same ones again.

        Raises:
            BadRow: the vector of a row has a number that is not finite.
            SourceError: there are fewer vectors than rows.
        """
        prepared = super().prepare_rows(rows, pairs)
        vectors = self._of(np.array([row.number - 1 for row in rows]))
        if (bad := first_bad(vectors)) is not None:
            found = unusable(self.vectors, rows[bad].number - 1)
            raise BadRow(found.what, bad, hint=found.hint)
        return PreparedVectors(prepared.count, prepared.tokens, prepared.words, vectors)

    def require_all_read(self, rows: int) -> None:
        """Refuse a file of vectors that belongs to more rows than there were.

        Raises:
            SourceError
        """
        if rows != self.vectors.file.rows:
            raise self._other_count(f"{rows:,}")

    def _features(
        self, prepared: PreparedTexts, progress: Callable[[int, int], None] | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        assert isinstance(prepared, PreparedVectors)
        if progress is not None:
            progress(prepared.count, 0)
        vectors = prepared.vectors
        return dict.fromkeys(self.head.views, vectors), np.zeros(prepared.count, dtype=bool)

    def _of(self, places: np.ndarray) -> np.ndarray:
        """The vectors of rows of the file, `places` int64 `[n]`, ascending."""
        if places[-1] >= self.vectors.file.rows:
            raise self._other_count("more")
        if self._blocks is None:
            self._first = int(places[0])
            self._blocks = self.vectors.blocks(slice(self._first, None))
        self._read, self._first = self._read[places[0] - self._first :], int(places[0])
        parts, there = [self._read], len(self._read)
        while self._first + there <= places[-1]:
            parts.append(next(self._blocks))
            there += len(parts[-1])
        self._read = np.concatenate(parts) if len(parts) > 1 else self._read
        vectors: np.ndarray = self._read[places - self._first]
        return vectors

    def _other_count(self, rows: str) -> SourceError:
        file = self.vectors.file
        return SourceError(
            f"{file.where} has {file.rows:,} vectors, and the input has {rows} rows",
            hint="one vector for each row of the input, in the same order",
        )
