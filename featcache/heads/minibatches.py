"""Train rows in shuffled chunks, standardised; what must be read is gathered in a background thread."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch

from featcache.heads import features as row_blocks
from featcache.heads.features import blocks, standard_of
from featcache.heads.fit import Standard

CHUNK = 1 << 20  # numbers in one chunk of one view: 4 MB


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
        if len(x) * source.padded * 4 > row_blocks.IN_MEMORY:
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
        rows: int64 `[M]`, their numbers in `sources`.
        labels: theirs, `[M]` or `[M, C]`.
        sizes: how many of them a batch has, the last one perhaps fewer; or, where other workers have rows
            of these batches too, how many each has.
        everyone: labels of all rows of the batches, `[K]` or `[K, C]`.
        sources: by view; a batch of what they keep is gathered when it is used, while it fits the cache
            of the processor.
        gathered: float32 `[M, padded]` of the views that are not kept.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    sizes: int | list[int]
    everyone: torch.Tensor
    sources: Mapping[str, Source]
    gathered: Mapping[str, torch.Tensor]

    def batches(self) -> Iterator[list[torch.Tensor]]:
        """Features `[B, padded]` of each view, in the order of `sources`, batch after batch."""
        return map(list, zip(*(self._batches_of(view) for view in self.sources), strict=True))

    def _batches_of(self, view: str) -> Iterator[torch.Tensor]:
        kept = self.sources[view].kept
        if kept is None:
            return iter(self.gathered[view].split(self.sizes))
        return map(partial(kept.index_select, 0), self.rows.split(self.sizes))


class Feed:
    """The rows of epoch after epoch in chunks of whole batches; one is gathered while another is used.

    Args:
        sources: features by view; with a `share`, of its rows alone.
        labels: of all rows, `[N]` or `[N, C]`.
        orders: the rows of each epoch, int64 `[N]`, drawn one epoch ahead.
        share: the rows that this worker takes out of every batch; the others are another's.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        labels: torch.Tensor,
        orders: Iterator[torch.Tensor],
        batch_size: int,
        share: slice | None = None,
    ) -> None:
        widest = max(source.padded for source in sources.values())
        self.size = max(1, CHUNK // widest // batch_size) * batch_size
        self.sources, self.labels, self.orders = sources, labels, orders
        self.batch_size, self.share = batch_size, share or slice(0, len(labels))
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[tuple[Future[Chunk], bool]] = deque()  # with whether its epoch ends there
        self.parts: Iterator[tuple[torch.Tensor, bool]] = self._parts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def epoch(self) -> Iterator[Chunk]:
        """The chunks of the next epoch."""
        ends = False
        while not ends:
            if not self.waiting:
                self._prepare()
            future, ends = self.waiting.popleft()
            self._prepare()  # also of the epoch after this one
            yield future.result()

    def _prepare(self) -> None:
        for rows, ends in itertools.islice(self.parts, 1):
            self.waiting.append((self.thread.submit(self._gather, rows), ends))

    def _parts(self) -> Iterator[tuple[torch.Tensor, bool]]:
        for order in self.orders:
            parts = order.split(self.size)
            yield from ((rows, number == len(parts)) for number, rows in enumerate(parts, 1))

    def _gather(self, rows: torch.Tensor) -> Chunk:
        sources = self.sources
        everyone = labels = self.labels.index_select(0, rows)
        sizes: int | list[int] = self.batch_size
        if self.share.stop - self.share.start < len(self.labels):
            mine = (rows >= self.share.start) & (rows < self.share.stop)
            sizes = [int(batch.sum()) for batch in mine.split(self.batch_size)]
            rows, labels = rows[mine] - self.share.start, labels[mine]
        gathered = {view: source.take(rows) for view, source in sources.items() if source.kept is None}
        return Chunk(rows, labels, sizes, everyone, sources, gathered)
