"""Likely label errors: confident learning on out-of-fold probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.errors import HeadError
from featcache.heads.features import Standard, standardised_rows
from featcache.heads.probabilities import probabilities_of
from featcache.system.packages import require_extra
from featcache.system.progress import OnProgress, Progress, ignore

FOLDS = 5
PENALTIES = (1e-3, 1e-2, 0.1)  # the values of C that `fit_reference` chooses from
TOLERANCE = 1e-4  # of the gradient: probabilities are then right to about three digits


@dataclass(frozen=True)
class OutOfFold:
    """Probabilities of each row from a head that was fitted without the row.

    Attributes:
        probabilities: float64 `[N, C]`.
        judged: bool `[N]`: False where no row in the other folds has the label of the row.
    """

    probabilities: np.ndarray
    judged: np.ndarray


def out_of_fold(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    C: float,
    groups: np.ndarray,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> OutOfFold:
    """Probabilities of each row from a logistic regression fitted on the rows of all other folds.

    The rows of a group (copies of one text) are in the same fold: a copy with the same wrong label would
    hide the error. Apart from that, every fold has its share of each class.

    Args:
        x: features `[N, D]` as stored.
        y: int `[N]` or multi-hot `[N, C]`.
        C: inverse strength of the penalty, see `featcache.heads.logistic.exact`.
        groups: int `[N]`.
        on_progress: receives the stage `out-of-fold heads`.

    Raises:
        HeadError: rows nothing can be learned from, or fewer groups than folds.
    """
    from featcache.heads.logistic import exact
    from featcache.heads.logistic.objective import logits

    fold_of = _assign_folds(y, groups, folds, seed)
    rows = standardised_rows(x, Standard.of(x))
    found, judged = np.zeros((len(x), classes)), np.ones(len(x), bool)
    for fold in range(folds):
        held_out = fold_of == fold
        weight = (~held_out).astype(np.float64)
        fitted = exact.fit(rows, y, classes, C, sample_weight=weight, tolerance=TOLERANCE)
        scores = logits(rows, fitted.weight, fitted.bias)[held_out]
        found[held_out] = probabilities_of(scores, 1.0, multi_label=y.ndim == 2)
        judged[held_out] = _labels_known(y[~held_out], y[held_out], classes)
        on_progress(Progress("out-of-fold heads", done=fold + 1, total=folds))
    return OutOfFold(found, judged)


def likely_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Row numbers of labels that are likely wrong, int64 `[K]`, the least likely label first.

    Confident learning (Northcutt, Jiang & Chuang 2021, arXiv:1911.00068) by cleanlab: it counts, class by
    class, how often confident predictions disagree with the labels, and lists that many rows.

    Args:
        labels: int `[N]` or multi-hot `[N, C]`.
        probabilities: float64 `[N, C]`, of heads that were fitted without these labels.

    Raises:
        UsageError: cleanlab is not installed.
    """
    require_extra("the search for label errors", "report", ["cleanlab"])
    if not len(labels):
        return np.zeros(0, np.int64)
    how = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    if labels.ndim == 1:
        from cleanlab.filter import find_label_issues

        return np.asarray(find_label_issues(labels, probabilities, **how), np.int64)
    from cleanlab.multilabel_classification.filter import find_label_issues as find_in_sets

    sets = [np.flatnonzero(row).tolist() for row in labels]
    return np.asarray(find_in_sets(sets, probabilities, **how), np.int64)


@dataclass(frozen=True)
class Reference:
    """A logistic regression that an inspection scores with; `C` was chosen on validation."""

    weight: np.ndarray
    bias: np.ndarray
    C: float
    standard: Standard
    multi_label: bool

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Features as stored `[N, D]` -> float64 `[N, C]`."""
        from featcache.heads.logistic.objective import logits

        scores = logits(standardised_rows(x, self.standard), self.weight, self.bias)
        return probabilities_of(scores, 1.0, multi_label=self.multi_label)


def fit_reference(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> Reference:
    """Fit on train rows (features as stored, labels), with the C that is best on validation rows; else 0.01.

    Raises:
        HeadError: rows nothing can be learned from.
    """
    from featcache.heads.logistic import exact
    from featcache.heads.logistic.penalty import choose_penalty

    x, y = train
    standard = Standard.of(x)
    rows = standardised_rows(x, standard)
    C = 1e-2
    if validation is not None:
        held_out = standardised_rows(validation[0], standard)
        C = choose_penalty(rows, y, classes, penalties, (held_out, validation[1])).C
    found = exact.fit(rows, y, classes, C, tolerance=TOLERANCE)
    return Reference(found.weight, found.bias, found.C, standard, y.ndim == 2)


def _assign_folds(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, int64 `[N]`: groups in random order, sorted by their first row's labels."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    if len(first) < folds:
        raise HeadError(
            f"{len(first)} different rows are too few for {folds} folds", hint="use fewer folds: --folds 2"
        )
    stratum = y[first] if y.ndim == 1 else np.unique(y[first], axis=0, return_inverse=True)[1].ravel()
    shuffled = np.random.default_rng(seed % 2**64).permutation(len(first))
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    fold_of = np.empty(len(first), np.int64)
    fold_of[order] = np.arange(len(first)) % folds
    return np.asarray(fold_of[group])


def _labels_known(fitted: np.ndarray, held_out: np.ndarray, classes: int) -> np.ndarray:
    """bool: whether the rows that were fitted have the label, or every label, of a held-out row."""
    if fitted.ndim == 1:
        return np.asarray(np.bincount(fitted, minlength=classes)[held_out] > 0)
    return np.asarray(~(held_out.astype(bool) & ~fitted.any(axis=0)).any(axis=1))
