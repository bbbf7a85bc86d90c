"""Texts as the states of their tokens at some layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from featcache.system.machine import one_thread_if

if TYPE_CHECKING:
    import torch

    from featcache.backbone.attentive import Scratch
    from featcache.backbone.packing import PackedLayout


SMALL_STEP = 1 << 23  # numbers in the states that are pooled at once: about 30 ms
ATTENTIVE = "attentive"  # the pooling that a head learns, in the name of a view: `last/attentive`


class TextStates(Protocol):
    """The token states of the texts of a split at one layer."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 `[N]`."""

    @property
    def nbytes(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, rows: np.ndarray, into: torch.Tensor) -> None:
        """Copy the states of some texts, end to end in that order, into `[T, H]` of `dtype` on the CPU."""


@dataclass(frozen=True, eq=False)
class TokenRows:
    """N texts with their token states; passed where heads take a matrix `[N, D]`.

    Attributes:
        layers: the states at each layer, of all texts of a split.
        numbers: int64 `[N]`, which of them.
        width: H, the numbers in a state; D is that of all layers.
        storage: what pooled vectors are rounded to, as in prediction.
        skipped: tokens at the beginning of each text that are not pooled, see `Pooler`.
        device: where they are pooled.
        budget: tokens of a batch that is pooled.
    """

    layers: tuple[TextStates, ...]
    numbers: np.ndarray
    width: int
    storage: str = "float16"
    skipped: int = 0
    device: str = "cpu"
    budget: int = 4096

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.numbers), self.width * len(self.layers)

    @property
    def ndim(self) -> int:
        return 2

    @property
    def nbytes(self) -> int:
        """About what the states of these texts take on disk."""
        whole = sum(layer.nbytes for layer in self.layers)
        return whole * len(self.numbers) // max(len(self.layers[0].lengths), 1)

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray(self.layers[0].lengths[self.numbers])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> TokenRows:
        return replace(self, numbers=self.numbers[rows])

    def as_array(self) -> np.ndarray:
        """Itself, for a type checker that wants an array."""
        return cast(np.ndarray, self)

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, PackedLayout]:
        """The states `[L, T, H]` of some texts at each layer, on the device, and where the texts lie."""
        return self._laid_out(rows, self._read(rows, self._scratch()))

    def batches(self, parts: Iterable[np.ndarray]) -> Iterator[tuple[torch.Tensor, PackedLayout]]:
        """A `batch` of each of several rows, valid until the next one, which is read ahead in a thread."""
        turns = self._scratch(), self._scratch()
        with ThreadPoolExecutor(1) as reader:
            ahead: tuple[np.ndarray, Future[torch.Tensor]] | None = None
            for number, rows in enumerate(parts):
                following = rows, reader.submit(self._read, rows, turns[number % 2])
                if ahead:
                    yield self._laid_out(ahead[0], ahead[1].result())
                ahead = following
            if ahead:
                yield self._laid_out(ahead[0], ahead[1].result())

    def _scratch(self) -> Scratch:
        import torch

        from featcache.backbone.attentive import Scratch

        return Scratch(self.layers[0].dtype, torch.device("cpu"))

    def _read(self, rows: np.ndarray, scratch: Scratch) -> torch.Tensor:
        """The states `[L, T, H]` of some texts, on the CPU."""
        states = scratch.empty(len(self.layers), int(self[rows].lengths.sum()), self.width)
        for layer, part in zip(self.layers, states, strict=True):
            layer.read(self.numbers[rows], part)
        return states

    def _laid_out(self, rows: np.ndarray, states: torch.Tensor) -> tuple[torch.Tensor, PackedLayout]:
        """See `batch`, of the states of these rows."""
        import torch

        from featcache.backbone.device_copies import copier_of
        from featcache.backbone.packing import PackedLayout, without_first

        device = torch.device(self.device)
        states, layout = copier_of(device).send(states), PackedLayout.of(self[rows].lengths, device)
        if not self.skipped:
            return states, layout
        parts = [without_first(one, layout, self.skipped) for one in states]
        return torch.stack([one for one, _ in parts]), parts[0][1]

    def pooled(self, queries: np.ndarray, centers: np.ndarray) -> np.ndarray:
        """`[N, D]` in the storage dtype: the vectors of all layers side by side.

        Args:
            queries: float32 `[L, M, H]`; centers: float32 `[L, H]`; see `attentive.Attention`.
        """
        import torch

        from featcache.backbone.attentive import pool_layers
        from featcache.backbone.memory_limit import smaller_batches

        pooled = np.empty(self.shape, self.storage)
        learned, center = (torch.from_numpy(part).to(self.device) for part in (queries, centers[:, None]))

        def pool(rows: np.ndarray) -> None:
            with torch.no_grad():
                vectors = pool_layers(*self.batch(rows), learned) - center
                pooled[rows] = vectors.transpose(0, 1).flatten(1).cpu().numpy()

        with one_thread_if(self.budget * self.shape[1] < SMALL_STEP):
            smaller_batches(self.lengths, self.budget, pool)
        return pooled
