"""Every metric equals scikit-learn's, on both tasks; the calibration error equals a plain loop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from featcache.errors import HeadError, UsageError
from featcache.evaluation import metrics
from featcache.evaluation.metrics import (
    METRICS,
    calibration_gaps,
    confusion_matrix,
    multi_hot,
    score,
)

Case = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def few_rows_at_a_time() -> Iterator[None]:
    """Every case is summed from parts, as large data are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PART_ROWS", 3)
        yield


def names(classes: int) -> tuple[str, ...]:
    return tuple(f"c{number}" for number in range(classes))


@st.composite
def single_label(draw: st.DrawFn) -> Case:
    """Probabilities and labels; some classes may be neither there nor predicted."""
    classes, rows = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    probabilities = random.dirichlet(np.full(classes, 0.7), size=rows).clip(1e-6)
    probabilities /= probabilities.sum(1, keepdims=True)
    used = draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    return probabilities, random.choice(used, size=rows)


@st.composite
def multi_label(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities on a grid, so that some are thresholds; labels and rows may be empty of positives."""
    classes, rows = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    probabilities = random.integers(1, 20, (rows, classes)) / 20
    labels = random.random((rows, classes)) < random.random(classes) * draw(st.sampled_from([0, 0.3, 1]))
    return probabilities, labels.astype(np.uint8), random.integers(1, 20, classes) / 20


def by_loop(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error as in the paper: bin by bin, (lower, upper], 0 in the first."""
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for number in range(bins):
        inside = (confidence > edges[number]) & (confidence <= edges[number + 1])
        if number == 0:
            inside |= confidence == 0
        if inside.any():
            total += abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
    return total


@given(single_label())
@pytest.mark.filterwarnings("ignore")
def test_single_label_metrics_equal_scikit_learn(case: Case) -> None:
    probabilities, labels = case
    numbers, predicted = np.arange(probabilities.shape[1]), probabilities.argmax(1)
    found = score(probabilities, labels, names(len(numbers)))
    f1 = {
        kind: reference.f1_score(labels, predicted, average=kind, zero_division=0)
        for kind in ("macro", "micro", "weighted")
    }
    assert found.summary == pytest.approx(
        {
            "accuracy": reference.accuracy_score(labels, predicted),
            "macro_f1": f1["macro"],
            "micro_f1": f1["micro"],
            "weighted_f1": f1["weighted"],
            "log_loss": reference.log_loss(labels, probabilities, labels=numbers),
            "ece": by_loop(probabilities.max(1), predicted == labels),
        },
        abs=1e-12,
    )
    np.testing.assert_array_equal(
        found.confusion, reference.confusion_matrix(labels, predicted, labels=numbers)
    )
    table = reference.precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)
    rows = [(line.precision, line.recall, line.f1, line.support) for line in found.per_class]
    np.testing.assert_allclose(np.array(rows).T, np.array(table), rtol=0, atol=1e-12)
    assert [line.label for line in found.per_class] == list(names(len(numbers)))


@given(multi_label(), st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_multi_label_metrics_equal_scikit_learn(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], with_thresholds: bool
) -> None:
    probabilities, labels, limits = case
    classes = labels.shape[1]
    predicted = (probabilities >= (limits if with_thresholds else 0.5)).astype(int)
    found = score(probabilities, labels, names(classes), limits if with_thresholds else None)
    table = np.array(
        [
            [metric(labels[:, c], predicted[:, c], zero_division=0) for c in range(classes)]
            for metric in (reference.precision_score, reference.recall_score, reference.f1_score)
        ]
    )
    if classes > 1:  # scikit-learn takes one column for a binary task
        f1 = [
            reference.f1_score(labels, predicted, average=kind, zero_division=0)
            for kind in ("macro", "micro", "weighted")
        ]
    else:
        f1 = [table[2, 0]] * 3
    flat = probabilities.ravel()
    assert found.summary == pytest.approx(
        {
            "accuracy": reference.accuracy_score(labels, predicted),
            "macro_f1": f1[0],
            "micro_f1": f1[1],
            "weighted_f1": f1[2],
            "log_loss": reference.log_loss(labels.ravel(), flat, labels=[0, 1]),
            "ece": by_loop(flat, labels.ravel()),
        },
        abs=1e-12,
    )
    assert found.confusion is None
    rows = [(line.precision, line.recall, line.f1) for line in found.per_class]
    np.testing.assert_allclose(np.array(rows).T, table, rtol=0, atol=1e-12)
    assert [line.support for line in found.per_class] == labels.sum(axis=0).tolist()


def test_summary_has_the_six_metrics_in_order() -> None:
    found = score(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]), ("a", "b"))
    assert list(found.summary) == list(METRICS)
    assert found.summary["accuracy"] == found.accuracy == found.micro_f1 == 0.5
    assert found.summary["log_loss"] == found.log_loss == pytest.approx(-(np.log(0.9) + np.log(0.4)) / 2)
    assert found.ece == pytest.approx((0.1 + 0.6) / 2)  # right at 0.9, wrong at 0.6
    assert all(type(value) is float for value in found.summary.values())


def test_rows_of_the_confusion_matrix_are_true_labels() -> None:
    found = score(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.array([0, 1, 1]), ("a", "b"))
    assert found.confusion is not None and found.confusion.tolist() == [[1, 0], [1, 1]]


def test_labels_of_narrow_dtypes_do_not_overflow() -> None:
    labels = np.arange(100, dtype=np.uint8)
    np.testing.assert_array_equal(confusion_matrix(labels, labels, 100), np.eye(100, dtype=np.int64))
    found = score(np.eye(100, dtype=np.float32), labels, names(100))
    assert found.accuracy == found.macro_f1 == found.weighted_f1 == 1 and found.ece == 0


def test_label_without_rows_and_predictions_counts_as_in_scikit_learn() -> None:
    single = score(np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.array([0, 1]), names(3))
    several = score(np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.array([[1, 0, 0], [0, 1, 0]]), names(3))
    assert single.macro_f1 == 1 and several.macro_f1 == pytest.approx(2 / 3)
    assert several.weighted_f1 == several.micro_f1 == several.accuracy == 1


@pytest.mark.parametrize("labels", [np.zeros(0, np.int64), np.zeros((0, 3), np.uint8)])
@pytest.mark.filterwarnings("error")
def test_score_of_no_rows_is_nan(labels: np.ndarray) -> None:
    found = score(np.zeros((0, 3)), labels, names(3))
    assert list(found.summary) == list(METRICS) and np.isnan(list(found.summary.values())).all()
    assert [line.support for line in found.per_class] == [0, 0, 0]


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
        return score(probabilities, labels, names(2)).log_loss

    assert 30 < log_loss(np.array([[1.0, 0.0]]), np.array([1])) < 40
    assert 15 < log_loss(np.array([[1.0, 0.0]]), np.array([[0, 0]])) < 20  # one of two entries
    assert 30 < log_loss(np.array([[1.0, 1.0]], np.float32), np.array([[0, 0]])) < 40


def test_confidence_on_an_edge_is_in_the_bin_below() -> None:
    probabilities = np.array([[0.0], [0.2], [0.2000001], [1.0]])
    gaps = calibration_gaps(probabilities, np.ones((4, 1), np.uint8), bins=5)
    assert [np.flatnonzero(row).tolist() for row in gaps[:3]] == [[0], [0], [1]]
    assert not gaps[3].any()  # certain and right: no gap


def test_probability_equal_to_its_threshold_is_predicted() -> None:
    probabilities = np.array([[0.5, 0.3], [0.49, 0.31]])
    assert multi_hot(probabilities).tolist() == [[1, 0], [0, 0]]
    assert multi_hot(probabilities, np.array([0.4, 0.31])).tolist() == [[1, 0], [1, 1]]
    assert multi_hot(probabilities).dtype == np.uint8


@pytest.mark.parametrize(
    ("probabilities", "labels", "thresholds", "error", "says"),
    [
        (np.ones((2, 3)), np.zeros(3, np.int64), None, UsageError, "do not fit"),
        (np.ones((2, 3)), np.zeros((2, 2), np.uint8), None, UsageError, "do not fit"),
        (np.ones((2, 3)), np.zeros(2), None, UsageError, "whole numbers"),
        (np.ones((2, 3)), np.array([0, 3]), None, UsageError, r"0\.\.2"),
        (np.ones((2, 3)), np.array([0, -1]), None, UsageError, r"0\.\.2"),
        (np.ones((2, 3)), np.full((2, 3), 2), None, UsageError, r"0\.\.1"),
        (np.ones((2, 3)), np.zeros(2, np.int64), np.ones(3), UsageError, "single-label"),
        (np.ones((2, 3)), np.zeros((2, 3), np.uint8), np.ones(2), UsageError, "thresholds for 3 labels"),
        (np.full((2, 3), np.nan), np.zeros(2, np.int64), None, HeadError, "NaN"),
        (np.full((2, 3), 7.0), np.zeros(2, np.int64), None, HeadError, r"outside 0\.\.1"),
    ],
)
def test_score_refuses_shapes_and_labels_that_do_not_fit(
    probabilities: np.ndarray,
    labels: np.ndarray,
    thresholds: np.ndarray | None,
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        score(probabilities, labels, names(3), thresholds)


def test_score_refuses_another_number_of_names() -> None:
    with pytest.raises(UsageError, match="2 label names"):
        score(np.ones((2, 3)), np.zeros(2, np.int64), names(2))


def test_importing_the_metrics_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom featcache.evaluation import bootstrap, calibration, metrics\n"
        "print([name for name in ('torch', 'scipy', 'sklearn', 'pandas') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
