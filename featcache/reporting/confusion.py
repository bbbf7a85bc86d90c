"""The confusion matrix of the labels that are confused most, with some texts of each cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featcache.data.text_lookup import RowTexts
from featcache.reporting.document import MatrixCell, MatrixExample
from featcache.runs.predictions import Predictions

MOST_LABELS = 12  # of the matrix; the others are one row and one column
WRONG_EXAMPLES, RIGHT_EXAMPLES = 8, 3  # texts of a cell


def most_confused(counts: Sequence[Sequence[int]], most: int = MOST_LABELS) -> list[int]:
    """Numbers of the labels with the most wrong rows, of or as them; the most confused first.

    Args:
        counts: `[C, C]`, rows true, columns predicted.
    """
    table = np.asarray(counts, np.int64)
    wrong = table.sum(axis=0) + table.sum(axis=1) - 2 * table.diagonal()
    return [int(number) for number in np.argsort(-wrong, kind="stable")[:most]]


def matrix_cells(
    predictions: Predictions, split: str, labels: Sequence[int], texts: RowTexts
) -> list[MatrixCell]:
    """The cells of `labels` that have rows, the fullest first; none where rows have several labels."""
    if predictions.multi_label:
        return []
    true, predicted = predictions.labels, predictions.predicted
    sure = predictions.probabilities[np.arange(len(true)), predicted]
    chosen = dict[tuple[int, int], tuple[int, list[int]]]()
    for cell in ((i, j) for i in labels for j in labels):
        rows = np.flatnonzero((true == cell[0]) & (predicted == cell[1]))
        right = cell[0] == cell[1]
        order = np.argsort(sure[rows] if right else -sure[rows], kind="stable")
        if len(rows):
            most = RIGHT_EXAMPLES if right else WRONG_EXAMPLES
            chosen[cell] = len(rows), rows[order][:most].tolist()
    every = [row for _, rows in chosen.values() for row in rows]
    said = dict(zip(every, texts.texts_of(split, every), strict=True))

    def example(row: int) -> MatrixExample:
        row_hash = predictions.row_hash[row].tobytes().hex()
        return MatrixExample(texts.number(split, row), row_hash, float(sure[row]), said[row])

    cells = [MatrixCell(*cell, count, list(map(example, rows))) for cell, (count, rows) in chosen.items()]
    return sorted(cells, key=lambda cell: -cell.rows)
