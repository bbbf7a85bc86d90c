"""The features of the texts that can be asked, and how alike texts are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from featcache.heads.features import Standard

NEAR = 0.95  # cosine of standardised features from which on two texts are nearly equal


@dataclass(frozen=True, eq=False)
class TextPool:
    """Standardised features of N texts.

    Attributes:
        x: float32 `[N, D]`, each column with mean 0 and deviation 1.
        length: float32 `[N]`, of the rows of `x`; never 0.
        standard: of the features as they are stored.
    """

    x: np.ndarray
    length: np.ndarray
    standard: Standard

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """From features `[N, D]` as they are stored."""
        standard = Standard.of(features)
        x = standard(features)
        length = np.linalg.norm(x, axis=1)
        return cls(x, np.where(length > 0, length, np.float32(1)).astype(np.float32), standard)

    def __len__(self) -> int:
        return len(self.x)

    def some(self, rows: np.ndarray) -> TextPool:
        """The texts of these numbers."""
        return TextPool(self.x[rows], self.length[rows], self.standard)

    def cosines(self, rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        """Cosines float32 `[M, K]` between the M texts `others`, by default all N, and the K texts `rows`."""
        many = self if others is None else self.some(others)
        few = self.some(rows)
        return np.asarray((many.x @ (few.x / few.length[:, None]).T) / many.length[:, None])
