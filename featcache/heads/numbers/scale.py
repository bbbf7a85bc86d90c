"""From the logit of a head to a number in the labels' unit, and the interval around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from featcache.errors import HeadError


@dataclass(frozen=True, kw_only=True)
class PredictionInterval:
    """How far numbers are from what is predicted: `[prediction - half_width, prediction + half_width]`.

    Split conformal prediction (Lei et al., JASA 113, 2018; arXiv:1604.04173): of n rows that chose nothing,
    the k-th smallest absolute error, k = ceil((n + 1) level). A new number is within its interval with a
    probability of at least `level`, over the draw of these rows and the new one, if the new one comes from
    where these rows came from (exchangeable). That holds on average over texts, not for each kind of text.

    Attributes:
        level: above 0, below 1.
        half_width: in the unit of the labels.
        rows: n.
    """

    level: float
    half_width: float
    rows: int

    def __post_init__(self) -> None:
        if not (0 < self.level < 1 and 0 <= self.half_width < math.inf and self.rows > 0):
            raise ValueError("the level, half width or rows of an interval are out of range")

    @property
    def guarantee(self) -> str:
        """What is promised, and on which assumption."""
        return (
            f"an interval contains the number with a probability of at least {100 * self.level:g} %, over "
            f"the draw of the {self.rows:,} validation rows that chose nothing else and the new text, if new "
            "texts come from where the validation rows came from"
        )


def conformal_interval(errors: np.ndarray, level: float) -> PredictionInterval:
    """The interval of this level by the absolute errors `[n]` of rows that chose nothing.

    Raises:
        HeadError: too few rows for the level.
    """
    place = math.ceil((len(errors) + 1) * level - 1e-9)  # rounding must not ask for one row more
    if place > len(errors):
        raise too_few_rows(level, len(errors))
    half_width = float(np.partition(errors, place - 1)[place - 1]) if place else 0.0
    return PredictionInterval(level=level, half_width=half_width, rows=len(errors))


def rows_for(level: float) -> int:
    """The fewest rows that support an interval of this level."""
    return max(1, math.ceil(level / (1 - level) - 1e-9))


def too_few_rows(level: float, rows: int) -> HeadError:
    """The error to raise where so many rows do not support an interval of this level."""
    return HeadError(
        f"--interval {level:g} needs {rows_for(level):,} validation rows that choose nothing (two thirds of "
        f"those that do not leak), and there are {rows:,}",
        hint="use more validation rows, or a lower --interval",
    )


@dataclass(frozen=True, kw_only=True)
class NumberScale:
    """`mean + deviation * logit` is the number that a head predicts.

    Attributes:
        mean, deviation: of the labels of train, population deviation; float64, so that large numbers that
            differ little keep their digits.
        interval: None where validation had too few rows for one.
    """

    mean: float
    deviation: float
    interval: PredictionInterval | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.deviation < math.inf):
            raise ValueError("the mean or deviation of a scale is out of range")

    @classmethod
    def of(cls, y: np.ndarray) -> Self:
        """The scale of labels float64 `[N]`.

        Raises:
            HeadError: they do not differ.
        """
        if (y == y[0]).all():
            raise HeadError(
                "the train labels hold a single number; there is nothing to learn",
                hint="is the label column the right one? --label-column names it",
            )
        return cls(mean=float(y.mean()), deviation=float(y.std()))

    def numbers(self, logits: np.ndarray) -> np.ndarray:
        """Logits `[N, 1]` -> float64 `[N]`."""
        return self.mean + self.deviation * logits[:, 0].astype(np.float64)

    def ends(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the interval around numbers `[N]`; of Nones for a head without an interval."""
        if self.interval is None:
            none = np.full(len(numbers), None)
            return none, none
        return numbers - self.interval.half_width, numbers + self.interval.half_width

    def logits(self, y: np.ndarray) -> np.ndarray:
        """Labels float64 `[N]` as a solver learns them: mean 0 and deviation 1 over train."""
        return np.asarray((y - self.mean) / self.deviation)
