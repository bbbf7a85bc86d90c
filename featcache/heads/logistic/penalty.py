"""The penalty of a logistic regression, chosen by rows that were held out.

Penalties are tried from the strongest to the weakest, and those that come after held-out rows have clearly
turned against weaker ones are not tried: nearly all time would go there, and none of them would be chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from featcache.errors import HeadError
from featcache.evaluation.metrics import row_statistics
from featcache.heads.distributed import ALONE, ProcessGroup
from featcache.heads.features import counts_of, rarest_labels
from featcache.heads.logistic.exact import Solution, checked_rows, walk_path
from featcache.heads.logistic.objective import FeatureSlices, logits
from featcache.system.progress import OnProgress, Progress, ignore

IN_A_ROW = 3  # penalties that are clearly worse than the best before a path ends
LOSS_ERRORS, ACCURACY_ERRORS = 2.0, 1.0  # standard errors that make a difference clear


@dataclass(frozen=True)
class PenaltyScores:
    """Scores of penalties on rows that were held out.

    Attributes:
        solutions: rough ones of the penalties that were tried on all parts, C ascending; of all train rows,
            or those of the last fold.
        accuracy: float64 `[penalties, parts]`; parts are folds, or the validation rows alone.
        log_loss: float64 `[penalties, parts]`, as `featcache.evaluation.metrics` defines it.
    """

    solutions: tuple[Solution, ...]
    accuracy: np.ndarray
    log_loss: np.ndarray

    @property
    def best(self) -> Solution:
        """Of the highest mean accuracy, then the lowest mean log loss, then the smallest C."""
        accuracy, loss = self.accuracy.mean(axis=1), self.log_loss.mean(axis=1)
        numbers = range(len(self.solutions))
        return self.solutions[max(numbers, key=lambda i: (accuracy[i], -loss[i], -i))]

    @property
    def C(self) -> float:
        return self.best.C

    @property
    def penalties(self) -> tuple[float, ...]:
        return tuple(solution.C for solution in self.solutions)


def choose_penalty(
    x: FeatureSlices,
    y: np.ndarray,
    classes: int,
    penalties: Sequence[float],
    held_out: tuple[FeatureSlices, np.ndarray],
    *,
    sample_weight: np.ndarray | None = None,
    group: ProcessGroup = ALONE,
    on_progress: OnProgress = ignore,
) -> PenaltyScores:
    """Score each penalty on validation rows, up to where these have clearly turned.

    Args:
        held_out: validation features `[M, D]`, standardised as `x` was, and their labels, of the same kind as
            `y`.
        on_progress: receives the stage `penalties`: how many were tried.

    Raises:
        HeadError: as `featcache.heads.logistic.exact.fit_path`; validation rows that do not fit, or none.
    """
    x_val = held_out[0]
    y_val, _ = checked_rows(*held_out, classes, None, group)
    if y_val.ndim != np.ndim(y) or x_val.shape[1] != x.shape[1]:
        raise HeadError(
            "train and validation rows differ in width or in the kind of their labels",
            hint="take both from the same view and task",
        )
    path = walk_path(x, y, classes, penalties, sample_weight=sample_weight, group=group)
    path = _watched(path, on_progress, 0, len(penalties))
    everything = np.ones(len(y_val), dtype=bool)
    return _joined([_until_turn(path, x_val, y_val, everything, group)])


def cross_validate_penalty(
    x: FeatureSlices,
    y: np.ndarray,
    classes: int,
    penalties: Sequence[float],
    fold_of: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    group: ProcessGroup = ALONE,
    on_progress: OnProgress = ignore,
) -> PenaltyScores:
    """Score each penalty by stratified k-fold cross-validation, up to where a fold has clearly turned.

    Held-out rows get weight 0, so that no features are copied. Every fold gets its share of each class; of
    multi-label rows, of each row's rarest label (scikit-learn's `StratifiedKFold` has no multi-label). The
    scores of a fold count its rows equally.

    Args:
        fold_of: of each row, int `[N]`, see `folds_of`.
        on_progress: receives the stage `penalties`: how many were tried, of those of all folds.

    Raises:
        HeadError: as `featcache.heads.logistic.exact.fit_path`.
    """
    y, weight = checked_rows(x, y, classes, sample_weight, group)
    results, folds = [], int(fold_of.max()) + 1
    for fold in range(folds):
        held_out = fold_of == fold
        kept = np.where(held_out, 0.0, weight)
        path = walk_path(x, y, classes, penalties, sample_weight=kept, group=group)
        path = _watched(path, on_progress, fold * len(penalties), folds * len(penalties))
        results.append(_until_turn(path, x, y, held_out, group))
    return _joined(results)


class Turn:
    """Whether held-out rows have clearly turned against weaker penalties.

    They have when `IN_A_ROW` penalties one after another are clearly worse than the best ones so far in both:
    the log loss is higher than the lowest by more than `LOSS_ERRORS` standard errors, and the accuracy is
    lower than the highest by more than `ACCURACY_ERRORS`. The errors are those of the mean difference, row by
    row: it is much more certain than either mean.
    """

    def __init__(self) -> None:
        self.correct: np.ndarray | None = None  # of the penalty with the highest accuracy
        self.loss: np.ndarray | None = None  # of the one with the lowest log loss
        self.worse = 0

    def reached(self, correct: np.ndarray, loss: np.ndarray) -> bool:
        """Add the next penalty: bool `[M]`, which rows it gets right, and float64 `[M]`, their losses."""
        if self.correct is None or correct.mean() > self.correct.mean():
            self.correct = correct
        if self.loss is None or loss.mean() < self.loss.mean():
            self.loss = loss
        worse = _exceeds(loss, self.loss, LOSS_ERRORS) and _exceeds(self.correct, correct, ACCURACY_ERRORS)
        self.worse = self.worse + 1 if worse else 0
        return self.worse == IN_A_ROW


def _exceeds(one: np.ndarray, other: np.ndarray, errors: float) -> bool:
    """Whether the mean of one is above that of the other by so many standard errors of the difference."""
    difference = one.astype(np.float64) - other
    return bool(difference.mean() > errors * difference.std() / np.sqrt(len(difference)))


def _until_turn(
    path: Iterable[Solution], x: FeatureSlices, y: np.ndarray, rows: np.ndarray, group: ProcessGroup
) -> list[tuple[Solution, float, float]]:
    """Each solution with its accuracy and log loss, until the rows `[N]` of a mask have turned.

    Args:
        x: this worker's share of the features of all rows.
    """
    turn, found = Turn(), []
    for solution in path:
        outputs = group.gather(logits(x, solution.weight, solution.bias), len(y))[rows].astype(np.float64)
        probabilities = expit(outputs) if y.ndim == 2 else softmax(outputs, axis=1)
        scored = row_statistics(probabilities, y[rows])
        found.append((solution, float(scored.correct.mean()), float(scored.loss.mean())))
        if turn.reached(scored.correct, scored.loss):
            break
    return found


def _watched(path: Iterable[Solution], on_progress: OnProgress, done: int, total: int) -> Iterator[Solution]:
    """`path`, with a report of each penalty that was tried after `done` others."""
    for number, solution in enumerate(path, start=done + 1):
        on_progress(Progress("penalties", done=number, total=total))
        yield solution


def _joined(parts: list[list[tuple[Solution, float, float]]]) -> PenaltyScores:
    tried = min(map(len, parts))
    scores = np.array([[row[1:] for row in part[:tried]] for part in parts])  # [parts, penalties, 2]
    solutions = tuple(solution for solution, _, _ in parts[-1][:tried])
    return PenaltyScores(solutions, accuracy=scores[..., 0].T, log_loss=scores[..., 1].T)


def folds_of(y: np.ndarray, classes: int, folds: int = 5, seed: int = 0) -> np.ndarray:
    """The fold of each row, int `[N]`.

    Every fold gets its share of each class; of multi-label rows, of each row's rarest label.

    Args:
        folds: k, at least 2.
        seed: of the shuffle of the rows.

    Raises:
        HeadError: a class with fewer rows than folds.
    """
    if not 2 <= folds <= len(y):
        raise HeadError(
            f"{folds} folds of {len(y)} rows: from 2 to the number of rows are possible",
            hint="use fewer folds: --folds 2",
        )
    counts = counts_of(y, classes)
    for number in np.flatnonzero((counts > 0) & (counts < folds)):
        raise HeadError(
            f"class {number} has {counts[number]} rows, fewer than the {folds} folds",
            hint=f"use at most {counts[number]} folds, choose on a validation split, or add rows of it"
            if counts[number] > 1
            else "choose on a validation split, or add rows of it",
        )
    shuffled = np.random.default_rng(seed % 2**64).permutation(len(y))
    order = shuffled[np.argsort(rarest_labels(y)[shuffled], kind="stable")]
    fold_of = np.empty(len(y), dtype=np.int64)
    fold_of[order] = np.arange(len(y)) % folds
    return fold_of
