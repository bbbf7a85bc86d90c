"""Cost matrices from files, the decision that costs least, and the cost as a metric."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featcache.errors import UsageError
from featcache.evaluation.bootstrap import bootstrap_intervals, bootstrap_metrics
from featcache.evaluation.costs import cheapest, read_costs
from featcache.evaluation.metrics import METRICS, score, score_parts

NAMES = ("好", "坏", "一般")
COSTS = np.array([[0, 1, 2], [5, 0, 3.5], [1, 1, 0]])

shares = arrays(np.float64, (7, 3), elements=st.floats(0.01, 1)).map(lambda x: x / x.sum(1, keepdims=True))
matrices = arrays(np.float64, (3, 3), elements=st.integers(0, 9).map(float))


@given(shares, matrices)
def test_no_other_label_is_expected_to_cost_less(probabilities: np.ndarray, costs: np.ndarray) -> None:
    expected = np.einsum("ni,ij->nj", probabilities, costs)
    chosen = expected[np.arange(7), cheapest(probabilities, costs)]
    np.testing.assert_allclose(chosen, expected.min(axis=1), rtol=1e-9, atol=1e-9)


@given(shares, st.floats(0.1, 100))
def test_equal_costs_of_all_errors_give_the_most_probable_label(
    probabilities: np.ndarray, cost: float
) -> None:
    chosen = cheapest(probabilities, cost * (1 - np.eye(3)))
    np.testing.assert_allclose(probabilities[np.arange(7), chosen], probabilities.max(axis=1), rtol=1e-9)
    np.testing.assert_array_equal(cheapest(probabilities, None), probabilities.argmax(axis=1))


def test_a_probability_threshold_follows_from_two_costs() -> None:
    """Elkan 2001, section 1.3: with errors of 1 and 4, the costly class is predicted from 1/5 on."""
    share = np.array([0.19, 0.21])
    costs = np.array([[0.0, 1.0], [4.0, 0.0]])
    assert cheapest(np.stack([1 - share, share], axis=1), costs).tolist() == [0, 1]


JSON = {"坏": {"好": 5, "一般": 3.5}, "好": {"坏": 1, "一般": 2}, "一般": {"好": 1, "坏": 1, "一般": 0}}
TABLE = ",坏,好,一般\n好,1,0,2\n坏,0,5,3.5\n一般,1,1,0\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("costs.json", json.dumps(JSON, ensure_ascii=False)),
        ("costs.json", json.dumps(COSTS.tolist())),
        ("costs.csv", TABLE),
        ("costs.csv", "\ufeff" + TABLE + "\n"),
        ("costs.tsv", TABLE.replace(",", "\t")),
    ],
)
def test_every_form_of_a_file_gives_the_same_matrix(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    np.testing.assert_array_equal(read_costs(tmp_path / name, NAMES), COSTS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[[0, 1], [1, 0]]", "the matrix is 2 x 2, and there are 3 labels: 好, 坏, 一般"),
        ("a.json", "[[0, 1], [1]]", "its rows have different lengths"),
        ("a.json", "[]", "different lengths"),
        ("a.json", "{", "Expecting property name"),
        ("a.json", "3", "no costs by true and predicted label"),
        ("a.json", json.dumps(JSON | {"很好": {}}), "there is no label '很好'; the labels are: 好, 坏, 一般"),
        ("a.json", json.dumps(JSON | {"好": {"坏": 1}}), "the cost of '好' predicted as '一般' is missing"),
        ("a.json", json.dumps(JSON | {"好": {"坏": -1, "一般": 2}}), "'好' predicted as '坏' costs -1.0"),
        ("a.json", json.dumps(JSON | {"好": {"坏": True, "一般": 2}}), "True is no number"),
        ("a.json", "[[0, 1, NaN], [1, 0, 1], [1, 1, 0]]", "'好' predicted as '一般' costs nan"),
        ("a.json", "[[1, 1, 1], [2, 2, 2], [0, 0, 0]]", "no wrong answer costs more"),
        ("a.csv", TABLE.replace("3.5", "much"), "'much' is no number"),
        ("a.csv", TABLE + "坏,0,5,3.5\n", "label '坏' is there twice"),
        ("a.csv", TABLE + "中,0,5\n", "the line of '中' has 3 cells, the first one 4"),
        ("a.csv", "", "one for each true label are needed"),
        ("a.csv", ",坏,好,一般\n好,1,0,2\n", "the cost of '坏' predicted as '好' is missing"),
    ],
)  # fmt: skip
@pytest.mark.bad_input("defects")
def test_files_that_hold_no_costs_are_refused_by_what_is_wrong(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_costs(tmp_path / name, NAMES)
    assert said in caught.value.what and str(tmp_path / name) in caught.value.what


@pytest.mark.bad_input("defects")
def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_costs(tmp_path / "a.csv", NAMES)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="utf-8"):
        read_costs(tmp_path / "a.csv", NAMES)


def test_the_cost_of_a_split_is_the_mean_over_its_rows_and_has_an_interval() -> None:
    dice = np.random.default_rng(0)
    probabilities, labels = dice.dirichlet(np.ones(3), 400), dice.integers(0, 3, 400)
    found = score(probabilities, labels, NAMES, costs=COSTS)
    predicted = cheapest(probabilities, COSTS)
    assert found.cost == pytest.approx(COSTS[labels, predicted].mean())
    assert found.accuracy == (predicted == labels).mean() != (probabilities.argmax(1) == labels).mean()
    assert found.summary["cost"] == found.cost and found.confusion is not None
    np.testing.assert_array_equal(np.diag(found.confusion).sum(), (predicted == labels).sum())
    halves = [(probabilities[rows], labels[rows]) for rows in (slice(0, 150), slice(150, 400))]
    assert score_parts(halves, NAMES, costs=COSTS).summary == pytest.approx(found.summary)
    low, high = bootstrap_intervals(probabilities, labels, costs=COSTS)["cost"]
    assert low < found.cost < high < low + 0.6
    assert score(probabilities[:0], labels[:0], NAMES, costs=COSTS).summary.keys() == {*METRICS, "cost"}
    assert bootstrap_metrics(probabilities[:0], labels[:0], costs=COSTS).keys() == {*METRICS, "cost"}
    assert "cost" not in score(probabilities, labels, NAMES).summary


def test_costs_are_not_for_several_labels_a_row() -> None:
    with pytest.raises(UsageError, match="one label a row"):
        score(np.full((2, 3), 0.5), np.eye(3, dtype=np.uint8)[:2], NAMES, costs=COSTS)
