"""Calibration on validation rows: one temperature for the logits, one threshold for each label.

scikit-learn's `CalibratedClassifierCV` and `TunedThresholdClassifierCV` wrap estimators, and neither takes
several labels a row.
"""

from __future__ import annotations

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.evaluation.metrics import FLOOR, check_labels, check_probabilities

LOWEST, HIGHEST = 0.05, 20.0  # temperatures


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in 0.05..20 that minimises the negative log-likelihood of `logits / T`.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599), of softmax, or for multi-label of sigmoid. The
    likelihood is convex in 1/T, so the root of its slope is the minimum. Where all rows are predicted right
    there is no minimum, and T is 0.05. Entries whose true class has a probability below 1e-15, the floor of
    the log loss, at every T, such as a class without train rows, are left out.

    Args:
        logits: `[N, C]`.
        labels: int `[N]`, or multi-hot `[N, C]`; of validation, not of train.

    Returns:
        1.0 without rows, for logits that are all equal, and where no T is better.

    Raises:
        UsageError: shapes or labels that do not fit each other.
        HeadError: NaN or infinite logits.
    """
    check_labels(logits, labels)
    if not np.isfinite(logits).all():
        raise HeadError(
            "cannot fit a temperature to NaN or infinite logits",
            hint="a smaller --lr, or --storage float32, keeps them finite",
        )
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
    lowest, which predicts it for all rows. Of equally good ones it is the one nearest 0.5, then the higher.
    A label that no row has gets 0.5.

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
