"""Token states in memory whose labels only attention can learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from featcache.backbone.token_rows import TokenRows
from featcache.heads.features import LabelledFeatures

WIDTH = 8


@dataclass(frozen=True)
class MemoryStates:
    """Texts `[t, H]` each, as a states file has them."""

    texts: list[np.ndarray]

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(text) for text in self.texts])

    @property
    def nbytes(self) -> int:
        return sum(text.nbytes for text in self.texts)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def read(self, rows: np.ndarray, into: torch.Tensor) -> None:
        np.concatenate([self.texts[row] for row in rows], out=into.numpy())


def needles(count: int, seed: int = 0, layers: int = 1, classes: int = 2) -> LabelledFeatures:
    """Texts of noise in which one token, marked by its first number, has the label in the second.

    The marked token's sign is outweighed by the noise in a mean over all tokens.
    """
    draw = np.random.default_rng(seed)
    y = draw.integers(0, classes, count)
    found = []
    for _ in range(layers):
        texts = []
        for label in y:
            text = draw.normal(size=(draw.integers(20, 40), WIDTH)).astype(np.float32) * 2
            text[:, 0] = 0
            text[draw.integers(len(text)), :2] = 6, 3 * (2 * label / (classes - 1) - 1)
            texts.append(text)
        found.append(MemoryStates(texts))
    rows = TokenRows(tuple(found), np.arange(count), WIDTH, storage="float32")
    return LabelledFeatures(rows.as_array(), y)
