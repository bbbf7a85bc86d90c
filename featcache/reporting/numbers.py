"""What predictions say of a head: how sure it is, how often rightly, on which texts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from featcache.evaluation.metrics import BINS
from featcache.evaluation.paired import right_rows
from featcache.runs.predictions import Predictions

MISTAKES = 20
HISTOGRAM = 20


def confidences(said: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and whether it was right: of each row `[N]`; multi-label: of each of the N*C entries.

    Multi-label: how probable the label is, and whether it is there, as the calibration error counts it.
    """
    if said.multi_label:
        return said.probabilities.ravel(), said.labels.ravel().astype(bool)
    return said.probabilities.max(axis=1), said.probabilities.argmax(axis=1) == said.labels


def reliability(said: Predictions, bins: int = BINS) -> list[dict[str, Any]]:
    """Confidence against accuracy in the bins of the calibration error, with Wilson intervals."""
    confidence, right = confidences(said)
    cell = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    found = []
    for number in np.unique(cell).tolist():
        here = cell == number
        rows, hits = int(here.sum()), int(right[here].sum())
        found.append(
            {
                "from": number / bins,
                "to": (number + 1) / bins,
                "rows": rows,
                "confidence": float(confidence[here].mean()),
                "accuracy": hits / rows,
                "interval": wilson(hits, rows),
            }
        )
    return found


def confidence_histogram(said: Predictions, bins: int = HISTOGRAM) -> dict[str, list[float] | list[int]]:
    """How many rows are right and wrong at each confidence (multi-label: entries, there or not)."""
    confidence, right = confidences(said)
    edges = np.linspace(0, 1, bins + 1)
    counts = [np.histogram(confidence[where], edges)[0].tolist() for where in (right, ~right)]
    return {"edges": edges.tolist(), "right": counts[0], "wrong": counts[1]}


def by_length(said: Predictions, tokens: np.ndarray, bins: int = 8) -> list[dict[str, Any]]:
    """Accuracy by tokens of the text, in bins of about equally many rows."""
    if not len(said):
        return []
    right = right_rows(said.labels, said.predicted)
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, bins + 1), method="higher"))
    cell = np.clip(np.searchsorted(edges, tokens, side="left") - 1, 0, max(len(edges) - 2, 0))
    return [
        {"from": int(tokens[here].min()), "to": int(tokens[here].max()), **_share(right[here])}
        for here in (cell == number for number in np.unique(cell).tolist())
    ]  # fmt: skip


def by_truncation(said: Predictions, truncated: np.ndarray) -> dict[str, dict[str, Any]]:
    """Accuracy on texts that were cut, and on whole ones."""
    right = right_rows(said.labels, said.predicted)
    return {"cut": _share(right[truncated]), "whole": _share(right[~truncated])}


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927); (0, 1) of no rows."""
    if not rows:
        return 0.0, 1.0
    z, share = 1.959963984540054, hits / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def worst(said: Predictions, most: int = MISTAKES) -> tuple[np.ndarray, np.ndarray]:
    """Wrong rows and the confidence in what is wrong, int64 and float64 `[K]`, the most confident first.

    Multi-label: the confidence in the wrong entry that is surest.
    """
    wrong = np.flatnonzero(~right_rows(said.labels, said.predicted))
    if said.multi_label:
        p = said.probabilities[wrong]
        off = said.labels[wrong] != said.predicted[wrong]
        sure = np.where(off, np.where(said.predicted[wrong] == 1, p, 1 - p), 0).max(axis=1, initial=0)
    else:
        sure = said.probabilities[wrong, said.predicted[wrong]]
    order = np.argsort(-sure, kind="stable")[:most]
    return wrong[order], sure[order]


def _share(right: np.ndarray) -> dict[str, Any]:
    rows, hits = len(right), int(right.sum())
    return {"rows": rows, "accuracy": hits / rows if rows else None, "interval": wilson(hits, rows)}
