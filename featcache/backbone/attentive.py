"""Attentive pooling: learned queries say how much each token of a text counts in its vector.

Each query attends to all tokens of a text, and by its weights a slice of the numbers of their states is
averaged: the vector is as wide as a state. Several queries, no projection of the keys: Psomas et al. 2025,
arXiv:2506.10178.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from featcache.backbone.packing import PackedLayout


@dataclass(frozen=True, eq=False)
class Attention:
    """What was learnt of one layer.

    Attributes:
        queries: float32 `[M, H]`.
        center: float32 `[H]`, subtracted from the averaged states: the mean of the train tokens.
    """

    queries: torch.Tensor
    center: torch.Tensor

    @classmethod
    def of(cls, queries: np.ndarray, center: np.ndarray) -> Attention:
        return cls(torch.from_numpy(queries), torch.from_numpy(center))

    def to(self, device: torch.device) -> Attention:
        return Attention(self.queries.to(device), self.center.to(device))

    @property
    def query_of(self) -> torch.Tensor:
        """By which query each number is averaged, int64 `[H]`."""
        return query_of(self.queries)

    def weights(self, states: torch.Tensor) -> torch.Tensor:
        """How much each token of a text counts for each query: float32 `[t, H]` -> `[t, M]`."""
        return (states @ self.queries.T).softmax(0)

    def pool(self, states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        """The states `[T, H]` of a packed batch to float32 `[B, H]`."""
        return pool_layers([states], layout, self.queries[None])[0] - self.center


def query_of(queries: torch.Tensor) -> torch.Tensor:
    """By which of the queries `[..., M, H]` each number is averaged, int64 `[H]`: neighbours by the same."""
    count, width = queries.shape[-2:]
    return torch.arange(width, device=queries.device) * count // width


def pool_layers(states: Sequence[torch.Tensor], layout: PackedLayout, queries: torch.Tensor) -> torch.Tensor:
    """What queries `[L, M, H]` average of the states `[T, H]` of L layers: float32 `[L, B, H]`.

    Texts of about the same length are padded to one length, so that there are few and large products.
    """
    chosen, parts = query_of(queries), []
    for bucket in layout.buckets:
        shape = (len(states), *bucket.shape)
        padded = torch.stack([one.index_select(0, bucket.gather) for one in states]).float().view(*shape, -1)
        scores = padded @ queries.transpose(1, 2)[:, None]  # [L, n, tokens, M]
        counted = (scores + bucket.mask[:, 0, 0, :, None]).softmax(2)
        means = counted.transpose(2, 3) @ padded  # [L, n, M, H]; of each number one is wanted
        parts.append(means.gather(2, chosen.expand(*shape[:2], 1, -1)).squeeze(2))
    return torch.cat(parts, 1)
