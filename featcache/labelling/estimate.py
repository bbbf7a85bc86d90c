"""How good the head is, from the texts that were drawn at random alone, and what more labels would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from featcache.evaluation.extrapolation import LEAST_POINTS, fit_power_laws

CONFIDENCE = 0.95
MORE = 100  # labels that are added in the forecast
RESAMPLES = 200


def accuracy_interval(right: int, count: int) -> tuple[float, float]:
    """The exact binomial 95 % interval (Clopper & Pearson 1934) of a share; 0 to 1 without rows."""
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, right, count - right + 1)) if right else 0.0
    high = float(beta.ppf(1 - tail, right + 1, count - right)) if right < count else 1.0
    return low, high


@dataclass(frozen=True)
class AccuracyEstimate:
    """An accuracy with its 95 % interval.

    Attributes:
        labels: texts that the head learned from.
        rows: reserved texts that it was scored on.
    """

    labels: int
    rows: int
    accuracy: float
    low: float
    high: float

    @classmethod
    def of(cls, labels: int, right: np.ndarray) -> Self | None:
        """From which reserved texts the head is right about, bool `[V]`; None where there are none."""
        if not len(right):
            return None
        found = int(right.sum())
        low, high = accuracy_interval(found, len(right))
        return cls(labels, len(right), found / len(right), low, high)


@dataclass(frozen=True)
class MoreLabels:
    """How much `labels` more labels are expected to add to the accuracy, with a 95 % interval."""

    labels: int
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class LabellingCurve:
    """Accuracy by number of labels; `more` is None while there are too few points for a forecast."""

    points: tuple[AccuracyEstimate, ...] = ()
    more: MoreLabels | None = None


def labelling_curve(sizes: Sequence[int], right: Sequence[np.ndarray], seed: int = 0) -> LabellingCurve:
    """From heads that know so many labels, and which of the same reserved texts each is right about.

    The forecast is that of power laws, each fitted to the accuracies on a resample of the reserved texts.
    """
    points = tuple(
        point for size, one in zip(sizes, right, strict=True) if (point := AccuracyEstimate.of(size, one))
    )
    if len(points) < LEAST_POINTS:
        return LabellingCurve(points)
    table = np.stack(right).astype(np.float64)  # [K, V]
    count = table.shape[1]
    shares = np.random.default_rng(seed).multinomial(count, [1 / count] * count, RESAMPLES) / count
    errors = 1 - np.vstack([table.mean(axis=1), shares @ table.T])
    variance = np.maximum(errors[0] * (1 - errors[0]) / count, (0.5 / count) ** 2)
    laws = fit_power_laws(np.array(sizes), errors, 1 / variance)
    now, then = laws.error(np.array([sizes[-1], sizes[-1] + MORE])).T
    gain = now - then
    low, high = np.percentile(gain[1:], [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return LabellingCurve(points, MoreLabels(MORE, float(gain[0]), float(low), float(high)))
