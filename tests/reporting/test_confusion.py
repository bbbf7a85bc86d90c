"""The confusion matrix of a report: which labels and which texts are shown."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from featcache.data.text_lookup import RowTexts
from featcache.reporting.confusion import matrix_cells, most_confused
from featcache.reporting.parts import shown_matrix
from featcache.runs.predictions import Predictions
from tests.support.reports import report
from tests.support.saved_runs import hashes

NO_TEXTS = RowTexts({}, {}, "none")


def drawn(classes: int, rows: int = 200) -> Predictions:
    draw = np.random.default_rng(classes)
    p = draw.dirichlet(np.ones(classes), rows)
    labels = np.where(draw.random(rows) < 0.5, p.argmax(axis=1), draw.integers(0, classes, rows))
    return Predictions.of(hashes(range(rows)), labels, p, tuple(map(str, range(classes))))


def test_most_confused_labels_come_first() -> None:
    assert most_confused([[9, 0, 0], [0, 1, 2], [0, 0, 9]]) == [1, 2, 0]
    assert most_confused([[5, 1], [1, 5]], 1) == [0]


def test_matrix_cells_have_every_row_and_its_texts_in_order() -> None:
    said = drawn(4)
    cells = {(cell.true, cell.predicted): cell for cell in matrix_cells(said, "test", [2, 0, 1, 3], NO_TEXTS)}
    counts = confusion_matrix(said.labels, said.predicted)
    assert {place: cell.rows for place, cell in cells.items()} == {
        (int(i), int(j)): counts[i, j] for i, j in zip(*np.nonzero(counts), strict=True)
    }
    for (true, predicted), cell in cells.items():
        sure = [one.confidence for one in cell.examples]
        assert sure == sorted(sure, reverse=true != predicted) and len(sure) == min(
            cell.rows, 3 if true == predicted else 8
        )
        rows = (said.labels == true) & (said.predicted == predicted)
        known = {row.tobytes().hex() for row in said.row_hash[rows]}
        assert {one.row_hash for one in cell.examples} <= known


@given(st.integers(1, 40))
def test_the_shown_matrix_counts_every_row_once(classes: int) -> None:
    """Labels beyond the most confused ones are one row and one column."""
    counts = np.random.default_rng(classes).integers(0, 9, (classes, classes)).tolist()
    base = report(tuple(f"label {number}" for number in range(classes)))
    shown = shown_matrix(
        type(base)(**vars(base) | {"confusion": counts, "matrix_labels": most_confused(counts)})
    )
    assert shown is not None
    assert sum(cell.count for _, line in shown.lines for cell in line) == np.sum(counts)
    assert len(shown.lines) == len(shown.columns) == min(classes, 13)
