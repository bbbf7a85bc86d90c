"""Heads without gradient steps: ridge, linear discriminant, nearest centroid, nearest neighbours.

The results are those of scikit-learn's `RidgeClassifier`, `LinearDiscriminantAnalysis`, `NearestCentroid` and
`KNeighborsClassifier` on standardised features, and are tested against them. scikit-learn's estimators copy
all rows (2 million x 768 would be 12 GB a copy), so the sums over the train rows are taken here, in float64
and some rows at a time.

In all functions `x` is features `[N, D]` as stored, float16 or float32, memory-mapped or not; `y` is int64
`[N]`, or uint8 multi-hot `[N, C]`, where each label is a separate problem. Logits are for all C classes: one
that no train row has is never predicted (weight 0, bias -1e4; the neighbours give it no votes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from featcache.errors import HeadError
from featcache.heads.features import (
    LabelledFeatures,
    Standard,
    check_splits,
    counts_of,
    fixed_logits,
    standardised,
)
from featcache.heads.scorers import METRICS, Linear, Neighbours


def ridge(
    x: np.ndarray, y: np.ndarray, classes: int, *, alpha: float = 1.0, row_weight: np.ndarray | None = None
) -> Linear:
    """Least squares on targets -1 and 1 with penalty `alpha |W|^2`, as `RidgeClassifier` has it.

    The logits are the fitted targets: a label is predicted above 0. Those of two classes have opposite signs.

    Args:
        alpha: above 0; not divided by the number of rows.
        row_weight: `[N]`, not negative; the squared error of each row counts so many times.

    Raises:
        HeadError: rows no head can be trained on, alpha that is not above 0 or too small for such features.
    """
    from scipy.linalg import LinAlgError

    if not (alpha > 0 and np.isfinite(alpha)):
        raise HeadError(f"--alpha {alpha}: a number above 0 is needed")
    standard, fixed = _begin(x, y, classes)
    seen = np.flatnonzero(fixed == 0)
    centre, root = np.zeros(x.shape[1]), None
    target_mean = 2 * counts_of(y, classes)[seen] / len(y) - 1
    if row_weight is not None:
        counts, _, total = _class_sums(x, y, classes, standard, row_weight)
        centre, root = total / row_weight.sum(), np.sqrt(row_weight)[:, None]
        target_mean = 2 * counts[seen] / row_weight.sum() - 1

    def centred(rows: slice | np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some rows and their targets around their means, times the square roots of their weights."""
        targets = 2 * _hot(y[rows], classes)[:, seen] - 1 - target_mean
        return (part, targets) if root is None else ((part - centre) * root[rows], targets * root[rows])

    parts = (centred(rows, part) for rows, part in standardised(x, standard))
    try:
        solve = _ridge_by_rows if len(x) < x.shape[1] else _ridge_by_columns
        weight = solve(parts, alpha, x.shape[1], len(seen))
    except LinAlgError:
        raise HeadError(f"--alpha {alpha} is too small for these features", hint="use a larger one") from None
    return _linear(weight, target_mean - weight @ centre, standard, fixed)


def _ridge_by_columns(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], alpha: float, width: int, targets: int
) -> np.ndarray:
    """`[T, D]` from the Gram matrix of the columns `[D, D]`, added up over parts of the rows."""
    from scipy.linalg import cho_factor, cho_solve

    gram, products = np.zeros((width, width)), np.zeros((width, targets))
    for x, y in parts:
        gram += x.T @ x
        products += x.T @ y
    gram[np.diag_indices_from(gram)] += alpha
    return np.asarray(cho_solve(cho_factor(gram, overwrite_a=True), products).T)


def _ridge_by_rows(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], alpha: float, width: int, targets: int
) -> np.ndarray:
    """The same from the Gram matrix of the rows `[N, N]`: of fewer rows than columns, much less work."""
    from scipy.linalg import cho_factor, cho_solve

    some = list(parts)
    x, y = (np.concatenate([part[place] for part in some]) for place in (0, 1))
    gram = x @ x.T
    gram[np.diag_indices_from(gram)] += alpha
    return np.asarray((x.T @ cho_solve(cho_factor(gram, overwrite_a=True), y)).T)


def discriminant(x: np.ndarray, y: np.ndarray, classes: int, *, shrinkage: float | str = "auto") -> Linear:
    """Linear discriminant analysis, as `LinearDiscriminantAnalysis(solver="lsqr")` has it.

    Gaussian classes with one covariance: that of each class, shrunk, and averaged by its share of the rows.
    The logits are log posteriors up to a constant; with several labels, log posterior odds.

    Args:
        shrinkage: towards a multiple of the identity, 0 to 1; `auto` is Ledoit and Wolf's for each class
            (J. Multivariate Analysis 88, 2004), exact here too: it needs no more than the Gram matrix
            and the sum of the rows' fourth powers of length.

    Raises:
        HeadError: rows no head can be trained on, no two different rows in any class, bad shrinkage.
    """
    if shrinkage != "auto" and not (isinstance(shrinkage, int | float) and 0 <= shrinkage <= 1):
        raise HeadError(f"--shrinkage {shrinkage}: auto or a number from 0 to 1 is needed")
    standard, fixed = _begin(x, y, classes)
    seen = np.flatnonzero(fixed == 0)
    if y.ndim == 1:
        weight, bias = _discriminate(x, [np.flatnonzero(y == one) for one in seen], standard, shrinkage)
        return _linear(weight, bias, standard, fixed)
    weight, bias = np.empty((len(seen), x.shape[1])), np.empty(len(seen))
    for place, label in enumerate(seen):
        sides = [np.flatnonzero(y[:, label] == side) for side in (0, 1)]
        (no, yes), (no_bias, yes_bias) = _discriminate(x, sides, standard, shrinkage)
        weight[place], bias[place] = yes - no, yes_bias - no_bias
    return _linear(weight, bias, standard, fixed)


def centroid(x: np.ndarray, y: np.ndarray, classes: int, *, row_weight: np.ndarray | None = None) -> Linear:
    """The nearest class mean in standardised space, as `NearestCentroid` has it.

    The logits are `-|x - c|^2 / 2` without the part that is the same for all classes. With several labels
    each one asks which is nearer, the mean of the rows that have it or of those that do not.

    Args:
        row_weight: `[N]`, not negative; the means are weighted by it.

    Raises:
        HeadError: rows no head can be trained on.
    """
    standard, fixed = _begin(x, y, classes)
    seen = np.flatnonzero(fixed == 0)
    counts, sums, total = _class_sums(x, y, classes, standard, row_weight)
    counts, sums = counts[seen], sums[seen]
    if not counts.all():
        raise HeadError(
            "all rows of a label have weight 0; a centroid needs a row that counts",
            hint="give some of its rows a weight above 0, or leave --weight-column out",
        )
    mass = len(x) if row_weight is None else row_weight.sum()
    weight = sums / counts[:, None]
    bias = -(weight**2).sum(axis=1) / 2
    if y.ndim == 2:
        others = (total - sums) / (mass - counts)[:, None]
        weight, bias = weight - others, bias + (others**2).sum(axis=1) / 2
    return _linear(weight, bias, standard, fixed)


def neighbours(
    x: np.ndarray, y: np.ndarray, classes: int, *, neighbours: int = 15, metric: str = METRICS[0]
) -> Neighbours:
    """The k nearest train rows vote, as in `KNeighborsClassifier(algorithm="brute")`; keeps `x` as it is.

    Args:
        neighbours: k, at most N.
        metric: `cosine` or `euclidean`, of standardised features.

    Raises:
        HeadError: rows no head can be trained on, fewer rows than neighbours, an unknown metric.
    """
    standard, _ = _begin(x, y, classes)
    labels = y.astype(np.int64 if y.ndim == 1 else np.uint8, copy=False)
    kept = x if x.dtype in (np.float16, np.float32) else x.astype(np.float32)
    return Neighbours(
        kept, labels, classes, neighbours, mean=standard.mean, scale=standard.scale, metric=metric
    )


def _begin(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[Standard, np.ndarray]:
    """The standard of the train rows, and the logits of labels that cannot be learnt; refuses other rows."""
    check_splits(LabelledFeatures(x, y), None, classes)
    return Standard.of(x), fixed_logits(y, classes)


def _class_sums(
    x: np.ndarray, y: np.ndarray, classes: int, standard: Standard, row_weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class the rows, or their weight, `[C]`, and the sum of the standardised rows `[C, D]`.

    Last comes the sum of all rows `[D]`.
    """
    counts, sums, total = np.zeros(classes), np.zeros((classes, x.shape[1])), np.zeros(x.shape[1])
    for rows, part in standardised(x, standard):
        hot = _hot(y[rows], classes)
        if row_weight is None:
            total += part.sum(axis=0)
        else:
            hot *= row_weight[rows, None]
            total += row_weight[rows] @ part
        counts += hot.sum(axis=0)
        sums += hot.T @ part
    return counts, sums, total


def _hot(y: np.ndarray, classes: int) -> np.ndarray:
    """Labels of some rows as float64 zeros and ones `[B, C]`."""
    return np.asarray(y, np.float64) if y.ndim == 2 else np.eye(classes)[y]


def _linear(weight: np.ndarray, bias: np.ndarray, standard: Standard, fixed: np.ndarray) -> Linear:
    """The head for all classes and features as stored, from the weights of those that can be learnt."""
    seen = fixed == 0
    all_weight, all_bias = np.zeros((len(fixed), weight.shape[1])), fixed.copy()
    all_weight[seen], all_bias[seen] = weight, bias
    return Linear(*standard.fold(all_weight, all_bias))


def _discriminate(
    x: np.ndarray, groups: list[np.ndarray], standard: Standard, shrinkage: float | str
) -> tuple[np.ndarray, np.ndarray]:
    """Weights float64 `[G, D]` and biases `[G]` for groups of row numbers, for standardised features."""
    from scipy.linalg import pinvh

    means, covariance, shares = class_gaussians(x, groups, standard, shrinkage)
    if not np.trace(covariance) > 1e-20 * len(covariance):  # of features with variance 1: rounding
        raise HeadError(
            "no class has two different rows; a discriminant needs some spread within classes",
            hint="use more train rows, or --head centroid",
        )
    weight = (pinvh(covariance) @ means.T).T
    return weight, np.log(shares) - (weight * means).sum(axis=1) / 2


def class_gaussians(
    x: np.ndarray, groups: Sequence[np.ndarray], standard: Standard, shrinkage: float | str = "auto"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means `[G, D]` of groups of row numbers, their one covariance `[D, D]`, their shares `[G]`; float64.

    Of standardised features; the covariance is that of each group, shrunk, averaged by its share of the rows.
    """
    rows = sum(len(group) for group in groups)
    means, covariance = np.empty((len(groups), x.shape[1])), np.zeros((x.shape[1], x.shape[1]))
    for place, group in enumerate(groups):
        means[place] = sum(part.sum(axis=0) for _, part in standardised(x, standard, group)) / len(group)
        covariance += len(group) / rows * _covariance(x, group, means[place], standard, shrinkage)
    return means, covariance, np.array([len(group) / rows for group in groups])


def _covariance(
    x: np.ndarray, group: np.ndarray, mean: np.ndarray, standard: Standard, shrinkage: float | str
) -> np.ndarray:
    """Shrunk covariance float64 `[D, D]` of some rows around their mean.

    Automatic shrinkage is found on features of unit variance within the group, as in scikit-learn.
    """
    from sklearn.covariance import shrunk_covariance

    gram = np.zeros((len(mean), len(mean)))
    for _, part in standardised(x, standard, group):
        part -= mean
        gram += part.T @ part
    covariance = gram / len(group)
    if shrinkage != "auto":
        return np.asarray(shrunk_covariance(covariance, float(shrinkage)))
    spread = np.sqrt(np.diag(covariance))
    scale = np.where(spread > 1e-12 * np.maximum(np.abs(mean), 1), spread, 1.0)
    fourth = 0.0
    for _, part in standardised(x, standard, group):
        part -= mean
        part /= scale
        fourth += float((np.einsum("nd,nd->n", part, part) ** 2).sum())
    outer = np.outer(scale, scale)
    unit = covariance / outer
    return np.asarray(shrunk_covariance(unit, _ledoit_wolf(unit, fourth, len(group))) * outer)


def _ledoit_wolf(covariance: np.ndarray, fourth: float, rows: int) -> float:
    """Ledoit and Wolf's shrinkage from the covariance and the sum of `|row|^4` of centred rows.

    `sklearn.covariance.ledoit_wolf_shrinkage` needs all rows at once.
    """
    width = len(covariance)
    if width == 1:
        return 0.0
    squares = float((covariance**2).sum())
    error = (fourth / rows - squares) / (width * rows)
    distance = (squares - np.trace(covariance) ** 2 / width) / width
    error = min(error, distance)
    return float(error / distance) if error > 0 else 0.0
