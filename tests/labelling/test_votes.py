from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from featcache.labelling.answers import AnswerLine
from featcache.labelling.texts import TextsToLabel
from featcache.labelling.votes import CountedAnswers, agreement, cohens_kappa, krippendorffs_alpha

TEXTS = TextsToLabel.of([f"text {number}" for number in range(10)])


def line(row: int, by: str, *labels: str, answer: str = "labels", chosen: str = "") -> AnswerLine:
    return AnswerLine(
        answer=answer, text=TEXTS.hashes[row], labels=labels, by=by, time="2026-01-01", chosen=chosen
    )


def test_a_later_answer_counts_and_an_undo_brings_the_one_before_back() -> None:
    first, second = line(0, "a", "good"), line(0, "a", "bad")
    assert CountedAnswers.of(TEXTS, [first, second]).labels == {0: {"bad"}}
    undo = line(0, "a", answer="undo")
    assert CountedAnswers.of(TEXTS, [first, second, undo]).labels == {0: {"good"}}
    gone = CountedAnswers.of(TEXTS, [first, second, undo, undo, undo])
    assert (gone.labels, gone.touched) == ({}, {})


def test_most_people_decide_and_even_votes_count_nowhere() -> None:
    lines = [line(0, "a", "good"), line(0, "b", "bad"), line(1, "a", "good"), line(1, "b", "good")]
    counted = CountedAnswers.of(TEXTS, lines)
    assert (counted.labels, counted.conflicts) == ({1: {"good"}}, (0,))
    decided = CountedAnswers.of(TEXTS, [*lines, line(0, "c", "bad")])
    assert (decided.labels, decided.conflicts) == ({1: {"good"}, 0: {"bad"}}, ())


def test_skipped_texts_and_foreign_texts_have_no_labels() -> None:
    foreign = AnswerLine(answer="labels", text="00", labels=("x",), by="a", time="")
    counted = CountedAnswers.of(TEXTS, [line(3, "a", answer="skip"), line(4, "a", answer="unsure"), foreign])
    assert (counted.labels, counted.touched, counted.unknown) == ({}, {"a": {3, 4}}, 1)


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    """Krippendorff 2011, section C: four observers, twelve units, missing data; nominal alpha 0.743."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[value for value in unit if value is not None] for unit in zip(*table, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    assert krippendorffs_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorffs_alpha([["a", "a"], ["b", "b"]]) == 1
    assert krippendorffs_alpha([["a", "a"], ["a", "a"]]) is None
    assert krippendorffs_alpha([]) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    ours = cohens_kappa(first, second)
    if ours is None:
        assert set(first) == set(second) and len(set(first)) == 1
    else:
        assert np.isclose(ours, cohen_kappa_score(first, second))


def test_disagreements_are_listed_with_what_each_said() -> None:
    lines = [
        line(0, "a", "x"),
        line(0, "b", "x"),
        line(1, "a", "x", "y"),
        line(1, "b", "y"),
        line(2, "a", "x"),
    ]
    found = agreement(TEXTS, CountedAnswers.of(TEXTS, lines))
    assert found.texts == 2
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.texts, pair.same) == ("a", "b", 2, 0.5)
    (one,) = found.disagreements
    assert one.text == "text 1"
    assert one.labels == {"a": ("x", "y"), "b": ("y",)}
