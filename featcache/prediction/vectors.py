"""A head that was trained on imported vectors, and the vectors of the rows of a file to label."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.cache.view_names import join_views, split_name
from featcache.data.formats.lines import Row
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import BadRow, SourceError, UsageError
from featcache.finetuning.run_backbone import BackboneChoice
from featcache.fingerprint import EncoderDocument, joined_document
from featcache.heads.head import Head
from featcache.importing.check import SplitVectors, first_bad, unusable
from featcache.importing.open import open_vectors
from featcache.importing.vector_file import VectorFile
from featcache.prediction.joined_encoder import run_encoder
from featcache.prediction.predictor import AnyEncoder, Predictor, PreparedTexts
from featcache.runs.run import Run


def _imported(head: Head) -> tuple[str, EncoderDocument]:
    """Name and document of the backbone that stands for imported vectors; the name is "" where it is alone.

    Raises:
        UsageError: the head reads no such vectors, or those of several names.
    """
    documents = {each.name: each.encoder for each in head.encoder.named} or {"": head.encoder}
    found = [(name, one) for name, one in documents.items() if one.vectors is not None]
    if not found:
        raise UsageError(
            "--vectors: this head reads features of a backbone, which encodes the texts itself",
            hint="leave it out, or name a run on vectors:NAME with --run",
        )
    if len(found) > 1:
        raise UsageError(
            f"this head reads imported vectors of {len(found)} names, and --vectors gives those of one",
            hint="import vectors that stand side by side under one name, and train a head on them",
        )
    return found[0]


@dataclass(frozen=True, eq=False)
class PreparedVectors(PreparedTexts):
    """The vectors `[N, D]` of N texts, in the type that the head was trained on."""

    vectors: np.ndarray


class VectorPredictor(Predictor):
    """Labels the rows of a file by their vectors, the n-th vector for the n-th row.

    Args:
        encoder: of a head that reads other backbones beside the vectors, what encodes the texts for those.

    Raises:
        UsageError: the head reads no imported vectors, or those of several names.
        SourceError: vectors of another length than those of the head.
        HeadError: an encoder of other features than those of the head.
    """

    def __init__(self, head: Head, file: VectorFile, encoder: AnyEncoder | None = None) -> None:
        name, document = _imported(head)
        part = document.vectors
        assert part is not None
        if file.width != part.width:
            raise SourceError(
                f"{file.where} has vectors of {file.width:,} numbers, and this head reads {part.width:,}",
                hint="encode the texts with the model that made the vectors of its train texts",
            )
        self.views = [view for view in head.views if split_name(view)[0] == name]
        if encoder is not None:
            others = {each.name: each.encoder for each in head.encoder.named if each.name != name}
            views = join_views(view for view in head.views if view not in self.views)
            self._check(encoder, replace(head, encoder=joined_document(others), view=views))
        self.encoder, self.head, self.pairs = encoder, head, None
        self.vectors = SplitVectors(file, np.arange(file.rows), document.dtype.storage)
        self._blocks: Iterator[np.ndarray] | None = None
        self._read = np.zeros((0, file.width), self.vectors.storage)  # rows of the file from `_first` on
        self._first = 0
        self._reading = threading.Lock()  # a batch is read ahead while another is encoded again

    @classmethod
    def of_file(
        cls,
        run: Run,
        path: Path,
        array: str | None = None,
        *,
        choice: BackboneChoice | None = None,
        endpoint: EndpointSettings | None = None,
    ) -> VectorPredictor:
        """The head of a run, and the vectors of a file.

        Args:
            array: see `open_vectors`.
            choice, endpoint: of the other backbones that the head reads, see `run_encoder`.

        Raises:
            UsageError, SourceError: see `VectorPredictor`, `open_vectors` and `run_encoder`.
            HeadError: the head cannot be read.
            BackboneError: see `run_encoder`.
        """
        head = run.head()
        name, file = _imported(head)[0], open_vectors(path, array)
        encoder = None
        if head.encoder.named:
            encoder = run_encoder(run, head, choice or BackboneChoice(), endpoint, given=name)
        predictor = cls(head, file, encoder)
        predictor.pairs = run.record.pairs
        found = path.expanduser().stat()
        predictor.inputs = [str(path.expanduser().absolute()), found.st_size, found.st_mtime_ns, array]
        return predictor

    def prepare_rows(self, rows: Sequence[Row], pairs: Sequence[str] | None) -> PreparedTexts:
        """See `Predictor.prepare_rows`; best called with later rows each time, or the same ones again.

        Raises:
            BadRow: the vector of a row has a number that is not finite.
            SourceError: there are fewer vectors than rows.
        """
        vectors = self._of(np.array([row.number - 1 for row in rows]))
        if (bad := first_bad(vectors)) is not None:
            found = unusable(self.vectors, rows[bad].number - 1)
            raise BadRow(found.what, bad, hint=found.hint)
        prepared = super().prepare_rows(rows, pairs)
        return PreparedVectors(prepared.count, prepared.tokens, prepared.words, vectors)

    def require_all_read(self, rows: int) -> None:
        """Refuse a file of vectors that belongs to more rows than there were, or that changed meanwhile.

        Raises:
            SourceError
        """
        self.vectors.file.require_unchanged()
        if rows != self.vectors.file.rows:
            raise self._other_count(f"{rows:,}")

    def _features(
        self, prepared: PreparedTexts, progress: Callable[[int, int], None] | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        assert isinstance(prepared, PreparedVectors)
        features, truncated = super()._features(prepared, progress)
        return features | dict.fromkeys(self.views, prepared.vectors), truncated

    def _of(self, places: np.ndarray) -> np.ndarray:
        """The vectors of rows of the file, `places` int64 `[n]`, ascending."""
        if places[-1] >= self.vectors.file.rows:
            raise self._other_count("more")
        with self._reading:
            if self._blocks is None:
                self._first = int(places[0])
                self._blocks = self.vectors.blocks(slice(self._first, None))
            if places[0] < self._first:
                return self._again(places)
            gone = min(int(places[0]) - self._first, len(self._read))  # rows may be left out
            self._read, self._first = self._read[gone:], self._first + gone
            parts, there = [self._read], len(self._read)
            while self._first + there <= places[-1]:
                parts.append(next(self._blocks))
                there += len(parts[-1])
            self._read = np.concatenate(parts) if len(parts) > 1 else self._read
            vectors: np.ndarray = self._read[places - self._first]
            return vectors

    def _again(self, places: np.ndarray) -> np.ndarray:
        """`_of` for rows before those that were read last: of a batch that is encoded a second time."""
        begin, end = int(places[0]), int(places[-1]) + 1
        vectors: np.ndarray = np.concatenate([*self.vectors.blocks(slice(begin, end))])[places - begin]
        return vectors

    def _other_count(self, rows: str) -> SourceError:
        file = self.vectors.file
        return SourceError(
            f"{file.where} has {file.rows:,} vectors, and the input has {rows} rows",
            hint="one vector for each row of the input, in the same order",
        )
