"""Paired statistics: two classifiers on the same rows, and many such comparisons.

Two accuracies on one test split are not independent: both get the same hard rows wrong. Paired tests look at
the rows on which the two disagree, since only these tell which is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.evaluation.metrics import macro_f1

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_VALUES_AT_ONCE = 2_000_000  # float64 numbers in the matrices of one batch of resamples
_COUNTED = 10  # so many resamples beyond the observed difference make their share the p-value


@dataclass(frozen=True)
class McNemar:
    """Numbers of rows on which exactly one of two is right, and the two-sided p-value."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class ScoreDifference:
    """Second minus first, with its 95 % bootstrap interval and two-sided p-value."""

    first: float
    second: float
    low: float
    high: float
    p: float

    @property
    def value(self) -> float:
        return self.second - self.first


@dataclass(frozen=True)
class Bootstrap:
    """Differences of one set of resamples."""

    accuracy: ScoreDifference
    macro_f1: ScoreDifference
    resamples: int


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """Exact McNemar test of equal accuracy (McNemar 1947): a fair coin for each row they disagree on.

    The p-value is that of a two-sided binomial test with probability 1/2, valid for any number of rows
    (Dietterich 1998, Neural Computation 10(7), recommends the test for classifiers trained once).

    Args:
        first_right: bool `[N]`, whether the first predicted the row rightly; multi-label: the whole set.
        second_right: likewise, of the same rows.
    """
    from scipy.special import bdtr

    only_first = int(np.count_nonzero(first_right & ~second_right))
    only_second = int(np.count_nonzero(second_right & ~first_right))
    fewer, disagreed = min(only_first, only_second), only_first + only_second
    return McNemar(only_first, only_second, min(1.0, 2 * float(bdtr(fewer, disagreed, 0.5))))


def right_rows(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """bool `[N]`; multi-label (`[N, C]`): whether the whole label set is right."""
    right = np.asarray(labels == predicted)
    return np.asarray(right if right.ndim == 1 else right.all(axis=1))


def paired_bootstrap(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    classes: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Bootstrap:
    """Bootstrap of the differences in accuracy and macro F1, both scored on the same resampled rows.

    The interval is the percentile interval (Efron & Tibshirani 1993, chapter 13). The p-value is the share
    of resamples whose difference is as far from the observed one as that is from zero: the bootstrap
    distribution moved to the null hypothesis (their chapter 16; Berg-Kirkpatrick et al., EMNLP 2012),
    with one added above and below (Davison & Hinkley 1997, 4.11). Where fewer than 10 resamples are that far
    out, their share is too coarse for a correction for hundreds of comparisons; a normal distribution with
    the bootstrap's standard error then gives the p-value. It is never below 2^(1-k), k the rows predicted
    differently: no exact test (all ways to swap the two on these rows) gives less.

    Rows with equal labels and equal predictions are of one kind. How often each kind comes is drawn, which is
    the same distribution as that of drawn rows, at less cost. The order of the rows changes nothing.

    Args:
        labels: int `[N]`, or multi-hot `[N, C]`.
        first: predictions of the first, like `labels`.
        second: predictions of the second, like `labels`.
        classes: C.

    Raises:
        ValueError: no rows, or fewer than two resamples.
    """
    if not len(labels) or resamples < 2:
        raise ValueError(f"{resamples} resamples of {len(labels)} rows: nothing to learn from")
    kinds, counts = _kinds(labels, first, second)
    labels, first, second = (part[kinds] for part in (labels, first, second))
    scorer = _PairedScores(labels, first, second, classes)
    observed = scorer(counts[np.newaxis])[0]
    found = np.concatenate([scorer(drawn) for drawn in _draw(counts, resamples, seed, scorer.width)])
    disagreed = counts[~right_rows(first, second)].sum()
    lowest_p = min(1.0, 2.0 ** (1 - disagreed))
    pairs = (slice(0, 2), slice(2, 4))
    accuracy, macro_f1 = (score_difference(observed[pair], found[:, pair], lowest_p) for pair in pairs)
    return Bootstrap(accuracy, macro_f1, resamples)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values corrected for their number, float64 `[M]` in the same order (Holm 1979, step-down).

    Where all those below 0.05 are called differences, the probability that any of these calls is wrong is at
    most 5 %, for dependent comparisons, too. (SciPy has the Benjamini-Hochberg correction only.)
    """
    raw = np.asarray(p_values, np.float64)
    order = np.argsort(raw, kind="stable")
    corrected = np.empty_like(raw)
    corrected[order] = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    return np.minimum(corrected, 1.0)


class _PairedScores:
    """Accuracy and macro F1 of both, for given numbers of rows of each of K kinds.

    Many resamples are one product with a sparse matrix `[K, 5 C]`: labels, predictions and hits of the first,
    predictions and hits of the second.
    """

    def __init__(self, labels: np.ndarray, first: np.ndarray, second: np.ndarray, classes: int) -> None:
        from scipy.sparse import hstack

        true, one, two = (_indicator(part, classes) for part in (labels, first, second))
        self.table = hstack([true, one, one * true, two, two * true], format="csr").T.tocsr()
        self.right = np.stack([right_rows(labels, first), right_rows(labels, second)], axis=1)  # [K, 2]
        self.classes, self.multi_label = classes, labels.ndim == 2
        self.width = max(len(labels), 5 * classes)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Counts int `[R, K]` -> `[R, 4]`: accuracy of first and second, macro F1 of first and second."""
        rows = counts.sum(axis=1, keepdims=True)
        sums = (self.table @ counts.T.astype(np.float64)).reshape(5, self.classes, len(counts))
        true, *predicted = sums.transpose(0, 2, 1)
        f1 = [macro_f1(true, *predicted[i : i + 2], multi_label=self.multi_label) for i in (0, 2)]
        return np.column_stack([counts @ self.right / rows, *f1])


def _kinds(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of one row of each kind, and how many rows are of that kind: int64 `[K]` each.

    The order of the kinds does not depend on the order of the rows.
    """
    both = np.column_stack([labels, first, second])
    if labels.ndim == 2:
        both = np.packbits(both.astype(bool), axis=1)
    kinds, counts = np.unique(_as_items(both), return_index=True, return_counts=True)[1:]
    return kinds, counts


def _as_items(rows: np.ndarray) -> np.ndarray:
    """Rows `[N, B]` as single items `[N]` that compare by their bytes."""
    rows = np.ascontiguousarray(rows)
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()


def _draw(counts: np.ndarray, resamples: int, seed: int, width: int) -> Iterator[np.ndarray]:
    """How often each kind comes in a resample, int64 `[R, K]`, some resamples at a time."""
    generator = np.random.default_rng(seed)
    rows, batch = int(counts.sum()), max(1, _VALUES_AT_ONCE // width)
    for start in range(0, resamples, batch):
        yield generator.multinomial(rows, counts / rows, size=min(batch, resamples - start))


def _indicator(values: np.ndarray, classes: int) -> csr_array:
    """Label numbers `[K]` or multi-hot `[K, C]` as a sparse float64 `[K, C]` of ones."""
    from scipy.sparse import csr_array

    rows, columns = (np.arange(len(values)), values) if values.ndim == 1 else np.nonzero(values)
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(values), classes))


def score_difference(observed: np.ndarray, resampled: np.ndarray, lowest_p: float) -> ScoreDifference:
    """Observed scores `[2]` and those of the resamples `[R, 2]` -> their difference.

    Args:
        lowest_p: no p-value is below it.
    """
    value, found = observed[1] - observed[0], resampled[:, 1] - resampled[:, 0]
    low, high = np.quantile(found, (0.025, 0.975))
    # Equal distances count, also where rounding has made them unequal.
    far = np.count_nonzero(np.abs(found - value) >= abs(value) - 1e-12)
    p = (1 + far) / (1 + len(found)) if far >= _COUNTED else _normal_p(value, found.std(ddof=1))
    return ScoreDifference(*map(float, (*observed, low, high, max(p, lowest_p))))


def _normal_p(value: float, error: float) -> float:
    """Two-sided p-value of a normal value around zero with that standard error."""
    from scipy.special import ndtr

    return float(2 * ndtr(-abs(value) / error)) if error > 0 else 0.0
