"""Probabilities that mean what they say: one temperature for the logits, one threshold a label."""

from __future__ import annotations

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.evaluation.metrics import BINS, FLOOR, calibration_gaps, check_labels, check_probabilities

LOWEST, HIGHEST = 0.05, 20.0  # temperatures


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """How far confidence and accuracy lie apart, 0 to 1; NaN of no rows.

    Guo et al. 2017 (arXiv:1706.04599): bins of equal width over the highest probability; multi-label: over
    the probability of each of the N*C entries. The formula is at
    `featcache.evaluation.metrics.calibration_gaps`.

    Args:
        probabilities: `[N, C]`.
        labels: int `[N]`, or multi-hot `[N, C]`.

    Raises:
        UsageError: shapes or labels that do not fit each other.
        HeadError: NaN, or numbers that are no probabilities.
    """
    check_labels(probabilities, labels)
    check_probabilities(probabilities)
    if not len(labels):
        return float("nan")
    return float(np.abs(calibration_gaps(probabilities, labels, bins).mean(axis=0)).sum())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in 0.05..20 that minimises the negative log-likelihood of `logits / T`.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599), of softmax, or for multi-label of sigmoid. The
    likelihood is convex in 1/T, so the root of its slope is the minimum. Logits that put every truth first
    have none: for them T is 0.05. Entries whose true class is out of reach at every T (its probability
    stays below the 1e-15 at which the log loss ends), as of a class the head never saw, are left out.

    Args:
        logits: `[N, C]`.
        labels: int `[N]`, or multi-hot `[N, C]`; of validation, not of train.

    Returns:
        1.0 where nothing can be learned: no rows, logits that are all equal, no T better than 1.

    Raises:
        UsageError: shapes or labels that do not fit each other.
        HeadError: NaN or infinite logits.
    """
    check_labels(logits, labels)
    if not np.isfinite(logits).all():
        raise HeadError("cannot fit a temperature to NaN or infinite logits")
    likelihood = _Likelihood(_leads(np.asarray(logits, np.float64), labels))
    if likelihood.is_flat:
        return 1.0
    coldest, hottest = 1 / HIGHEST, 1 / LOWEST  # of 1/T
    if likelihood.slope(coldest) >= 0:
        found = coldest
    elif likelihood.slope(hottest) <= 0:
        found = hottest
    else:
        from scipy.optimize import brentq

        found = float(brentq(likelihood.slope, coldest, hottest, xtol=1e-9))
    return 1 / found if likelihood.loss(found) < likelihood.loss(1.0) else 1.0


def tune_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per label the threshold with the highest F1 of `probabilities >= threshold`; float64 `[C]`.

    Candidates are the midpoints between distinct neighbouring probabilities of the label, and half the
    lowest, which predicts it everywhere. Of equals it is the one nearest 0.5, then the higher. A label
    that no row has keeps 0.5.

    Args:
        probabilities: `[N, C]`.
        labels: multi-hot `[N, C]`; of validation, not of train.

    Raises:
        UsageError: single-label labels, or shapes that do not fit each other.
        HeadError: NaN, or numbers that are no probabilities.
    """
    check_labels(probabilities, labels)
    if labels.ndim != 2:
        raise UsageError("thresholds are for multi-label data; these labels are single-label")
    check_probabilities(probabilities)
    columns = zip(np.asarray(probabilities, np.float64).T, labels.T, strict=True)
    return np.array([_best_threshold(column, truth) for column, truth in columns])


class _Likelihood:
    """Mean NLL of one softmax an entry as a function of 1/T.

    Args:
        leads: float64 `[M, K]`, each logit less the true one's, so that the NLL of an entry at `1/T = b`
            is `logsumexp(b * leads)`.
    """

    def __init__(self, leads: np.ndarray) -> None:
        highest = leads.max(axis=1)
        reachable = highest * (1 / HIGHEST) < -np.log(FLOOR)
        self.highest = highest[reachable]
        self.below = leads[reachable] - self.highest[:, None]  # <= 0: no exp overflows

    @property
    def is_flat(self) -> bool:
        """No entry, or the same loss at every T."""
        return not (self.highest.any() or self.below.any())

    def loss(self, b: float) -> float:
        return float((b * self.highest + np.log(np.exp(b * self.below).sum(axis=1))).mean())

    def slope(self, b: float) -> float:
        """The derivative of `loss`: the mean lead under the model's own probabilities."""
        powers = np.exp(b * self.below)
        return float((self.highest + (powers * self.below).sum(axis=1) / powers.sum(axis=1)).mean())


def _leads(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Single-label: `[N, C]`. Multi-label: `[N * C, 2]`, a sigmoid being a softmax of logit and 0."""
    if labels.ndim == 1:
        return np.asarray(logits - np.take_along_axis(logits, labels[:, None].astype(np.intp), axis=1))
    wrong = np.where(labels, -logits, logits).ravel()
    return np.stack([np.zeros_like(wrong), wrong], axis=1)


def _best_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Of one label: probabilities `[N]`, labels 0/1 `[N]`."""
    positives = np.count_nonzero(labels)
    if not positives:
        return 0.5
    order = np.argsort(-probabilities)
    ranked = probabilities[order]
    following = np.append(ranked[1:], 0.0)  # below the last there is 0
    f1 = 2 * np.cumsum(labels[order], dtype=np.int64) / (np.arange(1, len(ranked) + 1) + positives)
    cut = np.append(ranked[:-1] > following[:-1], True)  # equals are predicted together
    middle = (ranked + following) / 2
    middle = np.where(middle > following, middle, ranked)  # between neighbouring floats there is none
    best = cut & (f1 == f1[cut].max())
    return float(middle[best][np.abs(middle[best] - 0.5).argmin()])
