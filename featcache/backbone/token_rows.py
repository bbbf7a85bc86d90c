"""Texts as the states of their tokens at some layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

if TYPE_CHECKING:
    import torch

    from featcache.backbone.attentive import Attention
    from featcache.backbone.packing import PackedLayout, StateBatch


ATTENTIVE = "attentive"  # the pooling that a head learns, in the name of a view: `last/attentive`


class TextStates(Protocol):
    """The token states of the texts of a split at one layer."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 `[N]`."""

    @property
    def nbytes(self) -> int: ...

    def batch(self, rows: np.ndarray) -> StateBatch:
        """Some texts, end to end in that order."""


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

    def batch(self, rows: np.ndarray) -> tuple[list[torch.Tensor], PackedLayout]:
        """The states `[T, H]` of some texts at each layer, on the device, and where the texts lie."""
        import torch

        from featcache.backbone.packing import PackedLayout, without_first

        device = torch.device(self.device)
        found = [layer.batch(self.numbers[rows]) for layer in self.layers]
        states = [one.states.to(device) for one in found]
        layout = PackedLayout.of(found[0].lengths, device)
        if not self.skipped:
            return states, layout
        parts = [without_first(one, layout, self.skipped) for one in states]
        return [one for one, _ in parts], parts[0][1]

    def pooled(self, attention: Sequence[Attention]) -> np.ndarray:
        """`[N, D]` in the storage dtype: the vectors of all layers side by side."""
        import torch

        from featcache.backbone.memory_limit import smaller_batches

        pooled = np.empty(self.shape, self.storage)
        learned = [one.to(torch.device(self.device)) for one in attention]

        def pool(rows: np.ndarray) -> None:
            with torch.no_grad():
                states, layout = self.batch(rows)
                parts = [one.pool(part, layout) for one, part in zip(learned, states, strict=True)]
                pooled[rows] = torch.cat(parts, 1).cpu().numpy()

        smaller_batches(self.lengths, self.budget, pool)
        return pooled
