"""Metrics of class probabilities, single-label and multi-label; plain numpy, no heavy import.

Labels are int `[N]` for a single label and multi-hot `[N, C]` for several. Every metric is made of sums over
rows (`RowStatistics` -> `Sums` -> `metrics_of`). scikit-learn's metrics, with which they are compared in the
tests, do not have these sums: the bootstrap of `featcache.evaluation.bootstrap` weighs rows instead of
scoring copies of them, and rows are scored that do not fit in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.evaluation.costs import cheapest

METRICS = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "log_loss", "ece")
FLOOR = 1e-15  # no probability counts as less in a log loss
BINS = 15  # of the calibration error, as in Guo et al.
PART_ROWS = 1 << 16  # rows whose statistics are held at a time

Entries = tuple[np.ndarray, ...]  # rows int [E], label numbers int [E]


@dataclass(frozen=True)
class ClassScore:
    """One row of the per-class table; 0 where a ratio has nothing to divide by."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """What a head does on one split; the six numbers are NaN where the split has no rows.

    Attributes:
        accuracy: share of rows whose label, or whole label set, is right.
        macro_f1: single-label: mean over the classes that are in the labels or were predicted;
            multi-label: mean over all labels, 0 for one that is in neither. Both as in scikit-learn.
        micro_f1: from the counts of all classes together; single-label: the accuracy.
        weighted_f1: mean over the classes, weighted by support.
        log_loss: nats a row; multi-label: mean binary cross-entropy over all N*C entries.
        ece: expected calibration error, see `calibration_gaps`.
        cost: mean cost of a row; None without a cost matrix.
        confusion: int64 `[C, C]`, rows true, columns predicted; None for multi-label.
    """

    accuracy: float
    macro_f1: float
    micro_f1: float
    weighted_f1: float
    log_loss: float
    ece: float
    per_class: tuple[ClassScore, ...]
    confusion: np.ndarray | None
    cost: float | None = None

    @property
    def summary(self) -> dict[str, float]:
        """`METRICS` by name, and `cost` where there is one."""
        cost = {} if self.cost is None else {"cost": self.cost}
        return {name: getattr(self, name) for name in METRICS} | cost


@dataclass(frozen=True)
class RowStatistics:
    """What each row adds to the sums that the metrics are made of.

    Attributes:
        correct: bool `[N]`.
        loss: float64 `[N]`, in nats.
        gaps: float64 `[N, bins]`, see `calibration_gaps`.
        entries: the entries (row, label) in the labels, those that were predicted, and those in both.
        classes: C.
        multi_label: whether labels are multi-hot.
        cost: float64 `[N]`, of the prediction; None without a cost matrix.
    """

    correct: np.ndarray
    loss: np.ndarray
    gaps: np.ndarray
    entries: Sequence[Entries]
    classes: int
    multi_label: bool
    cost: np.ndarray | None = None


@dataclass(frozen=True)
class Sums:
    """Sums over rows; leading axes `...`, if any, are resamples.

    Attributes:
        rows: N, the same in all resamples.
        correct, loss: `[...]`.
        gaps: `[..., bins]`.
        true, predicted, hits: `[..., C]`; `true` is also called support.
        multi_label: whether labels are multi-hot.
        cost: `[...]`, or None.
    """

    rows: int
    correct: np.ndarray
    loss: np.ndarray
    gaps: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    multi_label: bool
    cost: np.ndarray | None = None

    def __add__(self, other: Sums) -> Sums:
        """The sums over the rows of both."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        summed = {name: value + getattr(other, name) for name, value in known.items()}
        return Sums(**summed | {"multi_label": self.multi_label})


def score(
    probabilities: np.ndarray,
    labels: np.ndarray,
    label_names: tuple[str, ...],
    thresholds: np.ndarray | None = None,
    costs: np.ndarray | None = None,
) -> Scores:
    """Scores of probabilities `[N, C]` against labels.

    Args:
        probabilities: single-label: the highest is predicted, the first of equals.
        labels: int `[N]`, or multi-hot `[N, C]`.
        label_names: C names for the per-class table.
        thresholds: multi-label only: float `[C]`, predicted is `probabilities >= thresholds`; 0.5 each.
        costs: single-label only: float `[C, C]`; the label that costs least is predicted, see `cheapest`.

    Raises:
        UsageError: shapes or labels that do not fit each other.
        HeadError: NaN, or numbers that are no probabilities.
    """
    if len(label_names) != np.shape(probabilities)[-1]:
        raise UsageError(f"{len(label_names)} label names for probabilities {list(np.shape(probabilities))}")
    check_labels(probabilities, labels)
    parts = ((probabilities[rows], labels[rows]) for rows in row_parts(len(labels)))
    return score_parts(parts, label_names, thresholds, costs)


def score_parts(
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    label_names: tuple[str, ...],
    thresholds: np.ndarray | None = None,
    costs: np.ndarray | None = None,
) -> Scores:
    """As `score`, of rows that are not in memory at once.

    Args:
        parts: probabilities and labels of some rows each; at least one part.
    """
    total: Sums | None = None
    confusion: np.ndarray | int = 0
    for probabilities, labels in parts:
        sums = _total(row_statistics(probabilities, labels, thresholds, costs))
        total = sums if total is None else total + sums
        if not sums.multi_label:
            confusion = confusion + confusion_matrix(labels, cheapest(probabilities, costs), len(label_names))
    assert total is not None
    table = zip(label_names, total.true.tolist(), total.predicted.tolist(), total.hits.tolist(), strict=True)
    return Scores(
        **{name: float(value) for name, value in metrics_of(total).items()},
        per_class=tuple(_class_score(*line) for line in table),
        confusion=None if total.multi_label else np.asarray(confusion),
    )


def row_parts(rows: int) -> Iterator[slice]:
    """Slices of so many rows, PART_ROWS at a time; a single empty one where there are no rows."""
    return (slice(start, start + PART_ROWS) for start in range(0, max(rows, 1), PART_ROWS))


def row_statistics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    thresholds: np.ndarray | None = None,
    costs: np.ndarray | None = None,
) -> RowStatistics:
    """What each row adds; arguments and errors as in `score`."""
    check_labels(probabilities, labels)
    check_probabilities(probabilities)
    probabilities = np.asarray(probabilities, np.float64)
    cost = None
    if labels.ndim == 2:
        if costs is not None:
            raise UsageError("a cost matrix is for one label a row; these labels are multi-label")
        true, guessed = labels.astype(bool), multi_hot(probabilities, thresholds).astype(bool)
        correct = (true == guessed).all(axis=1)
        entries = [np.nonzero(where) for where in (true, guessed, true & guessed)]
    elif thresholds is not None:
        raise UsageError("thresholds are for multi-label data; these labels are single-label")
    else:
        every, best = np.arange(len(probabilities)), cheapest(probabilities, costs)
        correct = best == labels
        cost = None if costs is None else costs[labels, best]
        entries = [(every, labels.astype(np.int64)), (every, best), (every[correct], best[correct])]
    return RowStatistics(
        correct=correct,
        loss=_row_losses(probabilities, labels),
        gaps=calibration_gaps(probabilities, labels),
        entries=entries,
        classes=probabilities.shape[1],
        multi_label=labels.ndim == 2,
        cost=cost,
    )


def metrics_of(sums: Sums) -> dict[str, np.ndarray]:
    """Each of `METRICS`, and `cost` where there is one, float64 `[...]`; NaN of no rows."""
    if sums.rows == 0:
        names = METRICS if sums.cost is None else (*METRICS, "cost")
        return dict.fromkeys(names, np.full(np.shape(sums.correct), np.nan))
    cost = {} if sums.cost is None else {"cost": sums.cost / sums.rows}
    either = sums.true + sums.predicted
    f1 = _ratio(2 * sums.hits, either)
    return {
        "accuracy": sums.correct / sums.rows,
        "macro_f1": macro_f1(sums.true, sums.predicted, sums.hits, multi_label=sums.multi_label),
        "micro_f1": _ratio(2 * sums.hits.sum(axis=-1), either.sum(axis=-1)),
        "weighted_f1": _ratio((f1 * sums.true).sum(axis=-1), sums.true.sum(axis=-1)),
        "log_loss": sums.loss / sums.rows,
        "ece": np.abs(sums.gaps).sum(axis=-1) / sums.rows,
    } | cost


def macro_f1(true: np.ndarray, predicted: np.ndarray, hits: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """`[...]` from numbers of rows `[..., C]`, as `Scores.macro_f1`."""
    either = true + predicted
    counted = true.shape[-1] if multi_label else np.count_nonzero(either, axis=-1)
    return np.asarray(_ratio(2 * hits, either).sum(axis=-1) / counted)


def multi_hot(probabilities: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
    """The label sets predicted by probabilities `[N, C]`: uint8 `[N, C]`, 1 from the threshold upwards.

    Args:
        thresholds: float `[C]`; 0.5 each by default.

    Raises:
        UsageError: not one threshold a label.
    """
    limits = (
        np.full(probabilities.shape[1], 0.5) if thresholds is None else np.asarray(thresholds, np.float64)
    )
    if limits.shape != probabilities.shape[1:]:
        raise UsageError(f"{list(limits.shape)} thresholds for {probabilities.shape[1]} labels")
    return (probabilities >= limits).astype(np.uint8)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 `[C, C]`, rows true, columns predicted."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def calibration_gaps(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> np.ndarray:
    """What each row adds to each bin of the expected calibration error; float64 `[N, bins]`.

    Guo et al. 2017 (arXiv:1706.04599): confidences fall into `bins` intervals of equal width, open below
    and closed above (here 0 is in the first), and
    `ECE = sum over bins of |share correct - mean confidence| * share of the entries in the bin`,
    which is `sum over bins |sum over rows of gaps| / N`. Single-label: an entry is a row, its confidence the
    highest probability. Multi-label: all N*C entries, each with the probability that its label is there.
    """
    if labels.ndim == 2:
        confidence, true = np.asarray(probabilities, np.float64), labels
    else:
        confidence = probabilities.max(axis=1).astype(np.float64)[:, None]
        true = (probabilities.argmax(axis=1) == labels)[:, None]
    rows, entries = confidence.shape
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    cell = np.arange(rows)[:, None] * bins + np.searchsorted(inner, confidence, side="left")
    gaps = np.bincount(cell.ravel(), (true - confidence).ravel(), minlength=rows * bins)
    return np.asarray(gaps.reshape(rows, bins) / entries)


def check_labels(outputs: np.ndarray, labels: np.ndarray) -> None:
    """Probabilities or logits `[N, C]` and labels are of one shape, and there is such a label.

    Raises:
        UsageError: they are not.
    """
    shapes = f"outputs {list(outputs.shape)}, labels {list(labels.shape)} of {labels.dtype}"
    if outputs.ndim != 2 or not outputs.shape[1] or labels.shape not in (outputs.shape, outputs.shape[:1]):
        raise UsageError(f"these do not fit: {shapes}", hint="labels are int [N] or multi-hot [N, C]")
    if labels.dtype.kind not in "biu":
        raise UsageError(f"labels must be whole numbers: {shapes}")
    highest = 1 if labels.ndim == 2 else outputs.shape[1] - 1
    if labels.size and not (labels.min() >= 0 and labels.max() <= highest):
        raise UsageError(f"labels must be in 0..{highest}, found {labels.min()}..{labels.max()}: {shapes}")


def check_probabilities(probabilities: np.ndarray) -> None:
    """All are in 0..1, except for rounding.

    Raises:
        HeadError: they are not, or NaN.
    """
    if not ((probabilities >= -1e-5) & (probabilities <= 1 + 1e-5)).all():  # NaN is neither
        raise HeadError("probabilities that are NaN or outside 0..1", hint="pass probabilities, not logits")


def _row_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Nats of each row `[N]`; multi-label: the mean over its C entries."""
    if labels.ndim == 1:
        true = probabilities[np.arange(len(labels)), labels]
        return np.asarray(-np.log(np.maximum(true, FLOOR)))
    true = np.where(labels, probabilities, 1 - probabilities)
    return np.asarray(-np.log(np.maximum(true, FLOOR)).mean(axis=1))


def _total(rows: RowStatistics) -> Sums:
    """The sums over all rows."""
    true, predicted, hits = (np.bincount(labels, minlength=rows.classes) for _, labels in rows.entries)
    return Sums(
        rows=len(rows.correct),
        correct=rows.correct.sum(),
        loss=rows.loss.sum(),
        gaps=rows.gaps.sum(axis=0),
        true=true,
        predicted=predicted,
        hits=hits,
        multi_label=rows.multi_label,
        cost=None if rows.cost is None else rows.cost.sum(),
    )


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above / below`, 0 where there is nothing to divide by."""
    return np.asarray(above / np.where(below > 0, below, 1) * (below > 0))


def _class_score(name: str, support: int, predicted: int, hits: int) -> ClassScore:
    return ClassScore(
        name,
        precision=hits / predicted if predicted else 0.0,
        recall=hits / support if support else 0.0,
        f1=2 * hits / (support + predicted) if support + predicted else 0.0,
        support=support,
    )
