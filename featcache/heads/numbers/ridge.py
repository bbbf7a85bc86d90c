"""Ridge regression in closed form, its penalty chosen on other rows.

The result is that of scikit-learn's `Ridge` on standardised features, and is tested against it. The sums over
the rows are taken some rows at a time, in float64, so that features may be mapped and of any number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from featcache.errors import HeadError
from featcache.heads.features import LabelledFeatures, Standard, check_splits, standardised
from featcache.heads.fit import Fit, OnEpoch, check_settings
from featcache.heads.scorers import Linear
from featcache.settings import HeadSettings

PENALTIES = tuple(float(f"{10 ** (6 - step / 2):.3g}") for step in range(23))  # 1e6, ..., 1e-5
TURNED = 1.05  # weaker penalties are not tried once the error is so many times the lowest


def fit_ridge(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> Fit:
    """Least squares with penalty `alpha |W|^2`, as `Ridge` has it.

    alpha is given, or the one of `PENALTIES` with the lowest squared error: on the validation rows, or over
    `settings.folds` parts of the train rows, drawn by `seed`.

    Args:
        train, validation: with labels as a `NumberScale` makes them.

    Raises:
        HeadError: rows no head can be trained on; fewer train rows than folds.
    """
    check_settings(settings)
    check_splits(train, validation, classes)
    standard = Standard.of(train.x)
    about: dict[str, float] = {}
    sums = _LeastSquares.over(train, standard)
    if settings.alpha_choice == "fixed":
        alpha = settings.fixed_alpha
    else:
        if settings.alpha_choice == "validation":
            found = _errors([(sums, [(validation, None)])], standard)
        else:
            found = _errors(_folds(train, sums, standard, settings.folds, seed), standard)
        alpha = min(found, key=lambda tried: (found[tried], -tried))
        about = {"penalties_tried": len(found)}
    solved = sums.solve(alpha)
    if solved is None:
        raise HeadError(f"--alpha {alpha:g} is too small for these features", hint="use a larger one")
    weight, bias = solved
    scorer = Linear(*standard.fold(weight[None], np.array([bias])))
    return Fit(best=scorer, last=scorer, about={"alpha": alpha, **about})


_ChosenRows = tuple[LabelledFeatures, np.ndarray | None]  # rows, and which of them; None: all


@dataclass
class _LeastSquares:
    """Weighted sums over rows of standardised features x and targets z."""

    weight: float
    x: np.ndarray  # [D]
    z: float
    xx: np.ndarray  # [D, D]
    xz: np.ndarray  # [D]

    @classmethod
    def over(cls, rows: LabelledFeatures, standard: Standard, some: np.ndarray | None = None) -> Self:
        """Of all rows, or of those of these numbers."""
        width = rows.x.shape[1]
        found = cls(0.0, np.zeros(width), 0.0, np.zeros((width, width)), np.zeros(width))
        for x, z, weight in _parts((rows, some), standard):
            scaled = x * np.sqrt(weight)[:, None]
            found.weight += float(weight.sum())
            found.x += weight @ x
            found.z += float(weight @ z)
            found.xx += scaled.T @ scaled  # of one array: half the work
            found.xz += (weight * z) @ x
        return found

    def without(self, other: _LeastSquares) -> _LeastSquares:
        """The sums over the rows that `other` does not have."""
        return _LeastSquares(**{name: value - getattr(other, name) for name, value in vars(self).items()})

    def solve(self, alpha: float) -> tuple[np.ndarray, float] | None:
        """Weights float64 `[D]` and bias; None where rounding makes the penalty too small."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        mean, target = self.x / self.weight, self.z / self.weight
        matrix = self.xx - np.outer(self.x, mean)
        matrix[np.diag_indices_from(matrix)] += alpha
        try:
            weight = cho_solve(cho_factor(matrix, overwrite_a=True), self.xz - self.x * target)
        except LinAlgError:
            return None
        return weight, float(target - weight @ mean)


def _errors(
    parts: Sequence[tuple[_LeastSquares, Iterable[_ChosenRows]]], standard: Standard
) -> dict[float, float]:
    """The mean squared error by penalty, from the strongest, until it has clearly turned.

    Args:
        parts: sums over the rows to learn from, with the rows to predict.
    """
    found: dict[float, float] = {}
    for alpha in PENALTIES:
        error = weight = 0.0
        for sums, held_out in parts:
            solved = sums.solve(alpha)
            if solved is None:
                return found
            for rows in held_out:
                for x, z, w in _parts(rows, standard):
                    error += float(w @ (x @ solved[0] + solved[1] - z) ** 2)
                    weight += float(w.sum())
        found[alpha] = error / weight
        if found[alpha] > TURNED * min(found.values()):
            break
    return found


def _folds(
    train: LabelledFeatures, sums: _LeastSquares, standard: Standard, folds: int, seed: int
) -> list[tuple[_LeastSquares, list[_ChosenRows]]]:
    """The sums without each fold, and the rows of the fold."""
    if len(train.y) < 2 * folds:
        raise HeadError(f"{len(train.y)} train rows are too few for {folds} folds", hint="use fewer --folds")
    order = np.random.default_rng(seed).permutation(len(train.y))
    parts = [np.sort(order[fold::folds]) for fold in range(folds)]
    return [(sums.without(_LeastSquares.over(train, standard, part)), [(train, part)]) for part in parts]


def _parts(rows: _ChosenRows, standard: Standard) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Standardised features `[B, D]`, targets `[B]` and weights `[B]`, some rows at a time."""
    labelled, some = rows
    for numbers, x in standardised(labelled.x, standard, some):
        weight = np.ones(len(x)) if labelled.weight is None else labelled.weight[numbers]
        yield x, labelled.y[numbers], weight
