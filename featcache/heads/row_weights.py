"""How much each train row counts: weights by class, by name, and weights of the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.fingerprint import REGRESSION, task_of
from featcache.heads.features import LabelledFeatures, counts_of
from featcache.option import weights_by_name
from featcache.settings import HeadSettings

# Kinds that can weigh rows.
WEIGHTED = ("linear", "lexical", "logistic", "exact", "mlp", "ridge", "centroid", "attentive")


def check_weighted(kind: str, what: str) -> None:
    """Refuse weights for a kind of head that counts all rows alike.

    Args:
        what: the flag that asks for them.

    Raises:
        UsageError: with the kinds that can.
    """
    if kind not in WEIGHTED:
        raise UsageError(
            f"{what}: the {kind} head counts all rows alike",
            hint=f"these can weigh rows: {', '.join(WEIGHTED)}",
        )


def named_class_weights(class_weight: str, label_names: Sequence[str]) -> np.ndarray | None:
    """float64 `[C]` of `good=1,bad=3`: 1 for labels that it does not name; None for `none` and `balanced`.

    Raises:
        UsageError: a name that no label has.
    """
    by_name = weights_by_name(class_weight)
    if by_name is None:
        return None
    for name in by_name:
        if name not in label_names:
            raise UsageError(
                f"--class-weight: there is no label {name!r}", hint=f"labels: {', '.join(label_names)}"
            )
    return np.array([by_name.get(name, 1.0) for name in label_names])


def weights_of_rows(
    y: np.ndarray, label_names: Sequence[str], class_weight: str, own: np.ndarray | None
) -> np.ndarray | None:
    """What each train row counts, float64 `[N]`; None where all count alike or `balanced` says it all.

    Args:
        y: int `[N]`, multi-hot `[N, C]`, or numbers float64 `[N]`, which have no class weights.
        own: of the rows themselves; multiplied with the weight of their class.

    Raises:
        UsageError: class weights by name where rows have several labels; an unknown name.
    """
    if task_of(y) == REGRESSION:
        return own
    by_class = named_class_weights(class_weight, label_names)
    if by_class is not None and y.ndim == 2:
        raise UsageError(
            "--class-weight by name is for one label a row; these rows have several",
            hint="use --class-weight balanced, or --weight-column",
        )
    if own is not None:
        every, counted = (counts_of(rows, len(label_names)) for rows in (y, y[own > 0]))
        for label in np.flatnonzero((every > 0) & (counted == 0)):
            name = label_names[int(label)]
            raise UsageError(f"--weight-column: all rows with the label {name!r} have weight 0")
    if by_class is None:
        return own
    return np.asarray(by_class[y] if own is None else by_class[y] * own)


def all_weights(train: LabelledFeatures, classes: int, settings: HeadSettings) -> np.ndarray | None:
    """What each row counts by its class and by itself, float64 `[N]`; None where all count alike.

    Raises:
        HeadError: `balanced` with several labels a row.
    """
    if settings.class_weight == "none":
        return train.weight
    balanced = balanced_weights(train.y, classes)
    return balanced if train.weight is None else balanced * train.weight


def balanced_weights(y: np.ndarray, classes: int) -> np.ndarray:
    """float64 `[N]`: N / (classes seen * rows of the class), as scikit-learn has it.

    Raises:
        HeadError: rows with several labels.
    """
    if y.ndim == 2:
        raise HeadError(
            "--class-weight balanced is not for this head with several labels a row",
            hint="use --head linear, logistic or mlp",
        )
    counts = counts_of(y, classes)
    return np.asarray(len(y) / (np.count_nonzero(counts) * counts[y]))
