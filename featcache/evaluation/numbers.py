"""Metrics of predicted numbers, their bootstrap intervals, and two predictions on the same rows compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featcache.errors import UsageError
from featcache.evaluation.bootstrap import CONFIDENCE, drawn_counts
from featcache.evaluation.paired import ScoreDifference, score_difference

NUMBER_METRICS = ("mae", "rmse", "r2", "spearman")


@dataclass(frozen=True)
class NumberScores:
    """What a head does on one split; all are NaN where the split has no rows.

    Attributes:
        mae: mean absolute error, in the unit of the labels.
        rmse: root of the mean squared error, likewise.
        r2: share of the variance of the labels that is explained: 1 at best, 0 for their mean, below 0 for
            what is worse. Where all labels are equal, 1 if they are met, else 0, as in scikit-learn.
        spearman: correlation of the ranks, equal numbers with their mean rank; 0 where all labels or all
            predictions are equal.
    """

    mae: float
    rmse: float
    r2: float
    spearman: float

    @property
    def summary(self) -> dict[str, float]:
        """`NUMBER_METRICS` by name."""
        return {name: getattr(self, name) for name in NUMBER_METRICS}


def score_numbers(true: np.ndarray, predicted: np.ndarray) -> NumberScores:
    """Scores of predictions float `[N]` against labels float `[N]`.

    Raises:
        UsageError: shapes that do not fit each other, or numbers that are not finite.
    """
    _check(true, predicted)
    if not len(true):
        return NumberScores(*[float("nan")] * len(NUMBER_METRICS))
    found = _Resampled(true, predicted)(np.ones((1, len(true))))
    return NumberScores(**{name: float(values[0]) for name, values in found.items()})


def number_intervals(
    true: np.ndarray, predicted: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap interval of each metric, (low, high) by name; see `bootstrap_intervals`.

    (NaN, NaN) where there are no rows.
    """
    _check(true, predicted)
    if not len(true):
        return dict.fromkeys(NUMBER_METRICS, (float("nan"), float("nan")))
    score, tail = _Resampled(true, predicted), 50 * (1 - CONFIDENCE)
    parts = [score(counts) for counts in drawn_counts(len(true), resamples, seed)]
    ends = {
        name: np.percentile(np.concatenate([part[name] for part in parts]), [tail, 100 - tail]).tolist()
        for name in NUMBER_METRICS
    }
    return {name: (low, high) for name, (low, high) in ends.items()}


@dataclass(frozen=True)
class ErrorDifferences:
    """Second minus first: below 0 the second is nearer to the labels."""

    mae: ScoreDifference
    rmse: ScoreDifference


def paired_errors(
    true: np.ndarray, first: np.ndarray, second: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> ErrorDifferences:
    """Bootstrap of the differences in MAE and RMSE, both scored on the same resampled rows.

    Intervals and p-values are those of `featcache.evaluation.paired.paired_bootstrap`.

    Raises:
        UsageError: as `score_numbers`; no rows.
    """
    _check(true, first)
    _check(true, second)
    if not len(true):
        raise UsageError("no rows to compare on")
    errors = np.column_stack([first - true, second - true])
    both = np.column_stack([np.abs(errors), errors**2])
    observed = both.mean(axis=0)
    found = np.concatenate([counts @ both / len(true) for counts in drawn_counts(len(true), resamples, seed)])
    lowest_p = min(1.0, 2.0 ** (1 - np.count_nonzero(first != second)))
    return ErrorDifferences(
        score_difference(observed[:2], found[:, :2], lowest_p),
        score_difference(np.sqrt(observed[2:]), np.sqrt(found[:, 2:]), lowest_p),
    )


class _Resampled:
    """The metrics of rows that come so and so many times.

    Args:
        true, predicted: float `[N]`.
    """

    def __init__(self, true: np.ndarray, predicted: np.ndarray) -> None:
        centred = true - true.mean()  # its squares keep their digits
        errors = predicted - true
        self.columns = np.column_stack([np.abs(errors), errors**2, centred, centred**2])
        self.true_ranks, self.predicted_ranks = _Ranks(true), _Ranks(predicted)

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Counts `[R, N]`, each row of N in sum, -> `[R]` by metric."""
        rows = counts.shape[1]
        absolute, squares, total, spread = (counts @ self.columns).T / rows
        variance = spread - total**2
        flat = variance <= 1e-15 * np.maximum(spread, 1e-300)  # rounding, where all are equal
        explained = 1 - squares / np.where(flat, 1, variance)
        return {
            "mae": absolute,
            "rmse": np.sqrt(squares),
            "r2": np.where(flat, (squares == 0).astype(np.float64), explained),
            "spearman": _correlation(self.true_ranks(counts), self.predicted_ranks(counts), counts),
        }


class _Ranks:
    """Ranks of values `[N]` among rows that come so and so many times, equal ones with their mean rank."""

    def __init__(self, values: np.ndarray) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self.starts = np.flatnonzero(new)
        self.group = np.empty(len(values), np.int64)  # of each row, in the order of the values
        self.group[self.order] = np.cumsum(new) - 1

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Counts `[R, N]` -> ranks `[R, N]`, up to a constant."""
        sizes = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        middles = np.cumsum(sizes, axis=1) - sizes / 2
        return np.asarray(middles[:, self.group])


def _correlation(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's correlation of `[R, N]` with weights `[R, N]`; 0 where one of the two does not vary."""
    rows = counts.shape[1]
    first, second = (part - (counts * part).sum(axis=1, keepdims=True) / rows for part in (first, second))
    products = [(counts * one * two).sum(axis=1) for one, two in
                ((first, second), (first, first), (second, second))]  # fmt: skip
    scale = np.sqrt(products[1] * products[2])
    flat = scale <= 1e-9
    return np.where(flat, 0.0, np.clip(products[0] / np.where(flat, 1, scale), -1, 1))


def _check(true: np.ndarray, predicted: np.ndarray) -> None:
    if true.ndim != 1 or true.shape != predicted.shape:
        raise UsageError(f"labels {list(true.shape)} and predictions {list(predicted.shape)} do not fit")
    if not (np.isfinite(true).all() and np.isfinite(predicted).all()):
        raise UsageError("labels or predictions are not finite")
