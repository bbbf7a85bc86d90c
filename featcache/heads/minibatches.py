"""Shuffled batches of standardised rows; a background thread gathers what must be read."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Self

import numpy as np
import torch

from featcache.backbone.device_copies import copier_of
from featcache.heads.device.choose import CPU
from featcache.heads.device.features import SHARE_OF_FREE, free_bytes
from featcache.heads.features import Standard, is_kept, row_slices

NUMBERS_AT_ONCE = 1 << 20  # of one view in a sequence of batches: 4 MB


@dataclass(frozen=True)
class PaddedFeatures:
    """Standardised features with a column of ones for the bias, padded with zeros to a multiple of 16.

    Attributes:
        x: as stored, `[N, D]`.
        standard: of the train rows.
        device: where they are standardised and read.
        kept: float32 `[N, padded]` on the device where they are few enough, else None.
    """

    x: np.ndarray
    standard: Standard
    device: torch.device = CPU
    kept: torch.Tensor | None = None

    @classmethod
    def of(cls, x: np.ndarray, standard: Standard, device: torch.device = CPU) -> PaddedFeatures:
        stored = cls(x, standard, device)
        numbers = len(x) * stored.padded
        fits = is_kept(numbers) if device == CPU else 4 * numbers <= SHARE_OF_FREE * free_bytes(device)
        if not fits:
            return stored
        kept = torch.empty(len(x), stored.padded, device=device)
        for rows in row_slices(x):
            stored._fill(x[rows], kept[rows])
        return cls(x, standard, device, kept)

    @property
    def width(self) -> int:
        return int(self.x.shape[1])

    @cached_property
    def _standard_there(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and scale on the device."""
        mean, scale = (torch.from_numpy(part) for part in (self.standard.mean, self.standard.scale))
        return mean.to(self.device), scale.to(self.device)

    @property
    def padded(self) -> int:
        return -(-(self.width + 1) // 16) * 16

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Rows by number, or neighbouring ones: float32 `[B, padded]` on the device."""
        if self.kept is not None:
            return self.kept[rows]
        stored = self.x[rows if isinstance(rows, slice) else rows.numpy()]
        return self._fill(stored, torch.empty(len(stored), self.padded, device=self.device))

    def _fill(self, stored: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        if self.device == CPU:
            out[:, : self.width] = torch.from_numpy(self.standard.exactly(stored))
        else:
            mean, scale = self._standard_there
            sent = copier_of(self.device).to_device(np.array(stored))
            out[:, : self.width] = sent.double().sub_(mean).div_(scale)
        out[:, self.width] = 1.0
        out[:, self.width + 1 :] = 0.0
        return out


@dataclass(frozen=True)
class BatchSequence:
    """Consecutive batches of an epoch; all tensors are on the device of the features.

    Attributes:
        rows: int64 `[M]`, row numbers in `views`.
        labels: their labels, `[M]` or `[M, C]`.
        sizes: rows of a batch, where the last one may have fewer; or, where other workers read a share of
            each batch, how many rows each batch has here.
        all_labels: labels of all rows of the batches, `[K]` or `[K, C]`.
        views: features by view. A batch of what they keep is gathered when it is used, while it fits the
            cache of the processor.
        gathered: float32 `[M, padded]` of the views that are not kept.
        weights, all_weights: as `labels` and `all_labels`, float32; None where all rows count alike.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    sizes: int | list[int]
    all_labels: torch.Tensor
    views: Mapping[str, PaddedFeatures]
    gathered: Mapping[str, torch.Tensor]
    weights: torch.Tensor | None = None
    all_weights: torch.Tensor | None = None

    def batches(self) -> Iterator[list[torch.Tensor]]:
        """Features `[B, padded]` of each view, in the order of `views`, batch after batch."""
        return map(list, zip(*(self._batches_of(view) for view in self.views), strict=True))

    def _batches_of(self, view: str) -> Iterator[torch.Tensor]:
        kept = self.views[view].kept
        if kept is None:
            return iter(self.gathered[view].split(self.sizes))
        return map(partial(kept.index_select, 0), self.rows.split(self.sizes))


class BatchLoader:
    """The rows of epoch after epoch in batches; some are gathered while others are used.

    Args:
        views: features by view; of the rows of `share` alone.
        labels: of all rows, `[N]` or `[N, C]`, on the device of the features.
        orders: the rows of each epoch, int64 `[N]` on the CPU, drawn one epoch ahead.
        share: the rows of every batch that this worker takes.
        weights: of all rows, float32 `[N]`, on that device; None where they count alike.
    """

    def __init__(
        self,
        views: Mapping[str, PaddedFeatures],
        labels: torch.Tensor,
        orders: Iterator[torch.Tensor],
        batch_size: int,
        share: slice,
        weights: torch.Tensor | None = None,
    ) -> None:
        widest = max(view.padded for view in views.values())
        self.size = max(1, NUMBERS_AT_ONCE // widest // batch_size) * batch_size
        self.views, self.labels, self.batch_size, self.share = views, labels, batch_size, share
        self.weights = weights
        self.thread = ThreadPoolExecutor(1)
        self.sequences = self._gathered_ahead(rows for order in orders for rows in order.split(self.size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)
        self.sequences.close()  # it holds this object, and so the features on a GPU

    def epoch(self) -> Iterator[BatchSequence]:
        """The batches of the next epoch."""
        return itertools.islice(self.sequences, -(-len(self.labels) // self.size))

    def _gathered_ahead(self, parts: Iterator[torch.Tensor]) -> Generator[BatchSequence, None, None]:
        """The batches of each part; the next part, also of the next epoch, is gathered meanwhile."""
        waiting: deque[Future[BatchSequence]] = deque()
        for rows in parts:
            waiting.append(self.thread.submit(self._gather, rows))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()

    def _gather(self, rows: torch.Tensor) -> BatchSequence:
        device = self.labels.device
        there = rows.to(device)
        all_labels = labels = self.labels.index_select(0, there)
        all_weights = weights = None if self.weights is None else self.weights.index_select(0, there)
        sizes: int | list[int] = self.batch_size
        if self.share.stop - self.share.start < len(self.labels):
            own = (rows >= self.share.start) & (rows < self.share.stop)
            sizes = [int(batch.sum()) for batch in own.split(self.batch_size)]
            rows, own = rows[own] - self.share.start, own.to(device)
            there, labels = rows.to(device), labels[own]
            weights = None if weights is None else weights[own]
        gathered = {name: view[rows] for name, view in self.views.items() if view.kept is None}
        return BatchSequence(
            rows=there, labels=labels, sizes=sizes, all_labels=all_labels,
            views=self.views, gathered=gathered, weights=weights, all_weights=all_weights,
        )  # fmt: skip
