"""Attentive pooling: learned queries say how much each token of a text counts in its vector.

Each query attends to all tokens of a text, and by its weights a slice of the numbers of their states is
averaged: the vector is as wide as a state. Several queries, no projection of the keys: Psomas et al. 2025,
arXiv:2506.10178.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from featcache.backbone.packing import PackedLayout, split_runs


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
        """By which query each number is averaged, int64 `[H]`: neighbouring ones by the same."""
        count, width = self.queries.shape
        return torch.arange(width, device=self.queries.device) * count // width

    def weights(self, states: torch.Tensor) -> torch.Tensor:
        """How much each token counts for each query: float32 `[n, tokens, H]` -> `[n, tokens, M]`."""
        return (states @ self.queries.T).softmax(1)

    def pool(self, states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        """The states `[T, H]` of a packed batch to float32 `[B, H]`."""
        chosen, parts = self.query_of[None, None], []
        for run in split_runs(states, layout):
            run = run.float()
            means = self.weights(run).transpose(1, 2) @ run  # [n, M, H]; of each number one is wanted
            parts.append(means.gather(1, chosen.expand(len(run), 1, -1)).squeeze(1))
        return torch.cat(parts) - self.center
