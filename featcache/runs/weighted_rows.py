"""The rows that a head is trained on: some drawn by class, and what each of them weighs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from featcache.cache.catalog import Features
from featcache.data.row_weights import read_row_weights
from featcache.data.split import load_splits
from featcache.errors import HeadError, UsageError
from featcache.fingerprint import row_hashes
from featcache.heads.features import LabelledFeatures, WeightedFeatures, rarest_labels
from featcache.heads.row_weights import check_weighted, named_class_weights, weights_of_rows
from featcache.settings import HeadSettings, Settings


def draw_per_class(y: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Numbers of `count` rows of each class, ascending int64 `[M]`; of a class with fewer, all of them.

    The rows of a smaller count are among those of a larger one with the same seed. A multi-label row counts
    as of its rarest label. The raw PCG64 stream is used, which NumPy promises never to change.

    Args:
        y: int `[N]`, or multi-hot `[N, C]`.

    Raises:
        UsageError: a count below 1.
    """
    if count < 1:
        raise UsageError(f"--rows-per-class {count}: at least 1")
    strata = np.unique(rarest_labels(y), return_inverse=True)[1].ravel()
    order = np.lexsort((np.random.PCG64(seed % 2**64).random_raw(len(strata)), strata))
    counts = np.bincount(strata)
    rank = np.arange(len(strata)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < count])


def weighted_rows(
    settings: Settings, kind: str, train: Features, drawn: np.ndarray | None = None
) -> tuple[LabelledFeatures, HeadSettings]:
    """The rows that a head of this kind is trained on, and its settings without what the rows carry now.

    Weights by class name become weights of the rows; `balanced` is left to the solver. Row weights are read
    from the data, not from the cache: they change no feature.

    Args:
        drawn: numbers of the rows that are trained on; all by default.

    Raises:
        UsageError: weights for a kind that counts all rows alike; an unknown name.
        SourceError: no such column, or a row without a weight.
        HeadError: the data has other rows than the cached features.
    """
    head, rows = settings.head, LabelledFeatures(train.x, train.y)
    if head.weight_column is not None:
        check_weighted(kind, "--weight-column")
    if head.class_weight != "none":
        check_weighted(kind, "--class-weight")
    own = None if head.weight_column is None else _own_weights(settings, head.weight_column, train)
    weights = weights_of_rows(train.y, train.label_names, head.class_weight, own)
    if named_class_weights(head.class_weight, train.label_names) is not None:
        head = replace(head, class_weight="none")
    if drawn is not None:
        rows = LabelledFeatures(rows.x[drawn], rows.y[drawn])
        weights = None if weights is None else weights[drawn]
    return rows if weights is None else WeightedFeatures(*rows, weights), head


def _own_weights(settings: Settings, column: str, train: Features) -> np.ndarray:
    """float64 `[N]`, after a check that the data still has the rows of the cache, in their order."""
    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    hashes = [row_hashes(texts, pairs) for texts, pairs in split.batches()]
    if not np.array_equal(np.concatenate(hashes), train.row_hash):
        raise HeadError(
            "--weight-column: the train rows of the data are not those of the cached features",
            hint="extract them again: featcache extract --split train",
        )
    return read_row_weights(settings.data, split, column)
