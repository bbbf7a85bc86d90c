"""What all ways to fit a head share: standardised features, the lines of a training history, the result."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from featcache.heads.scorers import Scorer


@dataclass(frozen=True)
class Epoch:
    """One line of the training history.

    The train figures are those of the epoch's batches as they came; the validation figures are taken with the
    weights after the epoch.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class Fit:
    """What a solver returns.

    Attributes:
        best: after the epoch with the highest validation accuracy (then the lowest loss).
        last: after the last epoch.
        history: one entry an epoch; empty for solvers without epochs.
        best_epoch: 1-based; 0 for solvers without epochs.
        about: what else the solver has to say, JSON-able: a penalty that was chosen, a gradient's norm.
    """

    best: Scorer
    last: Scorer
    history: tuple[Epoch, ...] = ()
    best_epoch: int = 0
    about: dict[str, float] | None = None


@dataclass(frozen=True)
class Standard:
    """Mean and scale of each feature, float64 `[D]`; a constant feature keeps scale 1."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Standard:
        mean = x.mean(axis=0, dtype=np.float64)
        scale = x.std(axis=0, dtype=np.float64)
        return cls(mean, np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1), scale, 1.0))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 `[N, D]`, standardised."""
        standardised: np.ndarray = (np.asarray(x, np.float32) - self.mean) / self.scale
        return standardised.astype(np.float32)

    def fold(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights for standardised features as float32 weights `[C, D]`, `[C]` for features as they are."""
        folded = weight.astype(np.float64) / self.scale
        return folded.astype(np.float32), (bias - folded @ self.mean).astype(np.float32)


def schedule_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """What the learning rate is multiplied by in step `step` (from 0) of `total`: above 0, at most 1.

    Args:
        warmup: share of all steps over which it rises in a line.
        schedule: what follows: `constant`, or down to 0 after the last step by `linear` or half a `cosine`.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    passed = (step - rising) / max(total - rising, 1)
    if schedule == "linear":
        return 1 - passed
    if schedule == "cosine":
        return (1 + math.cos(math.pi * passed)) / 2
    return 1.0
