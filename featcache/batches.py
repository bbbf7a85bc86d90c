"""Train rows in shuffled chunks, standardised, gathered in a background thread while the last one is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from featcache.rows import blocks, standard_of
from featcache.solvers import Standard

IN_MEMORY = 1 << 29  # bytes of one view that are kept standardised in float32; above: chunk by chunk
CHUNK = 1 << 22  # numbers in one chunk of one view: 16 MB


@dataclass(frozen=True)
class Source:
    """Standardised features with a column of ones for the bias, padded with zeros to a multiple of 16.

    Attributes:
        x: as stored, `[N, D]`.
        standard: mean and scale of the train rows.
        kept: float32 `[N, padded]` where that is small enough, else None.
    """

    x: np.ndarray
    standard: Standard
    kept: torch.Tensor | None

    @classmethod
    def of(cls, x: np.ndarray, standard: Standard | None = None) -> Source:
        """By default standardised by its own mean and scale."""
        source = cls(x, standard or standard_of(x), None)
        if len(x) * source.padded * 4 > IN_MEMORY:
            return source
        kept = torch.empty(len(x), source.padded)
        first = 0
        for block in blocks(x):
            source._fill(block, kept[first : first + len(block)])
            first += len(block)
        return cls(x, source.standard, kept)

    @property
    def width(self) -> int:
        return int(self.x.shape[1])

    @property
    def padded(self) -> int:
        return -(-(self.width + 1) // 16) * 16

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows by number, float32 `[len(rows), padded]`."""
        if self.kept is not None:
            return self.kept.index_select(0, rows)
        return self._fill(self.x[rows.numpy()], torch.empty(len(rows), self.padded))

    def block(self, rows: slice) -> torch.Tensor:
        """Neighbouring rows, likewise."""
        if self.kept is not None:
            return self.kept[rows]
        part = self.x[rows]
        return self._fill(part, torch.empty(len(part), self.padded))

    def _fill(self, part: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        values = (part.astype(np.float64) - self.standard.mean) / self.standard.scale
        out[:, : self.width] = torch.from_numpy(values)
        out[:, self.width] = 1.0
        out[:, self.width + 1 :] = 0.0
        return out


@dataclass(frozen=True)
class Chunk:
    """Some rows of an epoch, in its order.

    Attributes:
        rows: int64 `[M]`, their numbers.
        features: float32 `[M, padded]` by view.
        labels: as given, `[M]` or `[M, C]`.
    """

    rows: torch.Tensor
    features: dict[str, torch.Tensor]
    labels: torch.Tensor


def chunks_of(
    sources: Mapping[str, Source], labels: torch.Tensor, order: torch.Tensor, batch_size: int
) -> Iterator[Chunk]:
    """The rows in `order`, in chunks of whole batches; the next is gathered while one is used."""
    widest = max(source.padded for source in sources.values())
    size = max(1, CHUNK // widest // batch_size) * batch_size
    parts = order.split(size)

    def gather(rows: torch.Tensor) -> Chunk:
        features = {view: source.take(rows) for view, source in sources.items()}
        return Chunk(rows, features, labels.index_select(0, rows))

    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(gather, parts[0])
        for following in [*parts[1:], None]:
            chunk = pending.result()
            if following is not None:
                pending = thread.submit(gather, following)
            yield chunk
