"""The choice of a penalty against scikit-learn's fits, and the rule that ends a path early."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedKFold

from featcache.errors import HeadError
from featcache.heads.features import LabelledFeatures, Standard
from featcache.heads.fit import Fit
from featcache.heads.logistic.exact import fit_path
from featcache.heads.logistic.penalty import Turn, choose_penalty, cross_validate_penalty, folds_of
from featcache.heads.registry import PENALTIES as PATH
from featcache.heads.registry import fit_exact, fit_logistic
from featcache.heads.scorers import Linear
from featcache.settings import HeadSettings
from tests.support.logistic import reference, rows


class TestChoosing:
    def test_choose_penalty_takes_the_best_on_validation(self) -> None:
        x, y = rows(400, 60, 3, noise=0.5)
        train, held = slice(0, 150), slice(150, 400)
        penalties = np.logspace(-4, 2, 7).tolist()
        chosen = choose_penalty(x[train], y[train], 3, penalties, (x[held], y[held]))
        ranks = {}
        for c in penalties:
            model = reference(x[train], y[train], c)
            probabilities = model.predict_proba(x[held])
            loss = -np.log(probabilities[np.arange(250), y[held]]).mean()
            ranks[c] = (model.score(x[held], y[held]), -loss)
        assert max(penalties, key=lambda c: ranks[c]) == chosen.C
        assert 1e-4 < chosen.C < 100  # a choice that had to be made

    def test_log_loss_decides_between_equal_accuracies(self) -> None:
        x = np.array([[-1.0], [1.0]] * 20, np.float32)
        y = np.array([0, 1] * 20)
        assert choose_penalty(x, y, 2, [1.0, 100.0, 0.01], (x, y)).C == 100.0

    def test_multi_label(self) -> None:
        x, _ = rows(300, 20, 2)
        r = np.random.default_rng(0)
        y = (x @ r.normal(size=(20, 3)) + r.logistic(size=(300, 3)) > 0).astype(np.uint8)
        chosen = choose_penalty(x[:150], y[:150], 3, [1e-6, 0.1], (x[150:], y[150:]))
        assert chosen.C == 0.1

    def test_validation_rows_must_fit(self) -> None:
        x, y = rows(60, 5, 2)
        with pytest.raises(HeadError, match="differ in width"):
            choose_penalty(x, y, 2, [1.0], (x[:, :4], y))
        with pytest.raises(HeadError, match="kind of their labels"):
            choose_penalty(x, y, 2, [1.0], (x, np.eye(2, dtype=int)[y]))


class TestCrossValidation:
    def test_scores_of_a_fold_are_of_fits_without_its_rows(self) -> None:
        """Every fold's accuracy, from fits on rows cut out; the deal itself is checked below."""
        x, y = rows(150, 20, 3)
        penalties = [0.01, 1.0]
        result = cross_validate_penalty(x, y, 3, penalties, folds_of(y, 3, 4, 3))
        fold_of = folds_of(y, 3, 4, 3)
        assert result.accuracy.shape == result.log_loss.shape == (2, 4)
        for i, c in enumerate(penalties):
            for fold in range(4):
                kept = fold_of != fold
                model = reference(x[kept], y[kept], c)
                assert result.accuracy[i, fold] == pytest.approx(model.score(x[~kept], y[~kept]))
                probabilities = model.predict_proba(x[~kept])[np.arange((~kept).sum()), y[~kept]]
                assert result.log_loss[i, fold] == pytest.approx(-np.log(probabilities).mean(), rel=1e-3)
        best = max(range(2), key=lambda i: result.accuracy[i].mean())
        assert penalties[best] == result.C

    def test_every_fold_has_its_share_of_each_class(self) -> None:
        y = np.array([0] * 53 + [1] * 31 + [2] * 5)
        fold_of = folds_of(y, 3, 5, 0)
        theirs = [np.bincount(y[test], minlength=3) for _, test in StratifiedKFold(5).split(y, y)]
        ours = [np.bincount(y[fold_of == fold], minlength=3) for fold in range(5)]
        assert sorted(map(sum, ours)) == sorted(map(sum, theirs))
        for label in range(3):
            assert sorted(c[label] for c in ours) == sorted(c[label] for c in theirs)
        assert (fold_of != folds_of(y, 3, 5, 1)).any()

    def test_rare_labels_are_spread_evenly_over_the_folds(self) -> None:
        r = np.random.default_rng(0)
        y = (r.random((200, 3)) < 0.5).astype(np.uint8)
        y[:, 2] = 0
        y[:10, 2] = 1
        fold_of = folds_of(y, 3, 5, 0)
        assert [int(y[fold_of == fold, 2].sum()) for fold in range(5)] == [2] * 5
        result = cross_validate_penalty(np.float32(r.normal(size=(200, 4))), y, 3, [0.1, 1.0], fold_of)
        assert np.isfinite(result.log_loss).all()

    def test_equal_seeds_give_equal_scores(self) -> None:
        x, y = rows(100, 10, 2)
        first, second = (cross_validate_penalty(x, y, 2, [0.1, 1.0], folds_of(y, 2, 5, 4)) for _ in range(2))
        np.testing.assert_array_equal(first.log_loss, second.log_loss)

    def test_class_with_fewer_rows_than_folds_is_refused(self) -> None:
        y = rows(100, 5, 2)[1].copy()
        y[:3] = 2
        with pytest.raises(HeadError, match=r"class 2 has 3 rows, fewer than the 5 folds\nuse at most 3"):
            folds_of(y, 3)
        y[1:3] = 0
        with pytest.raises(HeadError, match="class 2 has 1 rows, fewer than the 5 folds\nchoose on"):
            folds_of(y, 3)

    @pytest.mark.parametrize("folds", [0, 1, 101])
    def test_number_of_folds_out_of_range_is_refused(self, folds: int) -> None:
        with pytest.raises(HeadError, match="folds of 100 rows"):
            folds_of(rows(100, 5, 2)[1], 2, folds)


def _overlapping(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    x = dice.standard_normal((rows, 12)).astype(np.float32)
    return x, (x[:, 0] + 2 * dice.standard_normal(rows) > 0).astype(np.int64)


def test_fit_exact_takes_the_best_penalty_on_validation() -> None:
    (x, y), (held_out, y_held_out) = _overlapping(120, 0), _overlapping(80, 1)
    asked = HeadSettings(penalty="validation")
    fit = fit_exact(LabelledFeatures(x, y), LabelledFeatures(held_out, y_held_out), 2, asked, seed=0)
    assert fit.about is not None
    ranks = {}
    for C in PATH:
        one = fit_exact(
            LabelledFeatures(x, y), LabelledFeatures(held_out, y_held_out), 2, HeadSettings(C=C), seed=0
        )
        logits = one.best.logits(held_out).astype(np.float64)
        loss = -log_softmax(logits, axis=1)[np.arange(80), y_held_out].mean()
        ranks[C] = (float((logits.argmax(1) == y_held_out).mean()), -round(float(loss), 6))
    best = max(ranks.values())
    assert ranks[fit.about["C"]] == best and min(PATH) < fit.about["C"] < max(PATH)


def test_fit_exact_by_folds_does_not_use_validation() -> None:
    x, y = _overlapping(120, 0)
    asked = HeadSettings(penalty="folds", folds=4)
    chosen = []
    for labels in (y, 1 - y):  # validation labels that contradict each other change nothing
        fit = fit_exact(LabelledFeatures(x, y), LabelledFeatures(x, labels), 2, asked, seed=3)
        assert fit.about is not None
        chosen.append(fit.about["C"])
    standard = Standard.of(x)
    expected = cross_validate_penalty(standard(x), y, 2, PATH, folds_of(y, 2, 4, 3))
    assert chosen == [expected.C, expected.C]


class TestTurn:
    """Rows that a penalty gets wrong cost more, too: `wrong` of 400 rows with a loss of `cost` each."""

    @staticmethod
    def scored(wrong: int, cost: float) -> tuple[np.ndarray, np.ndarray]:
        correct = np.arange(400) >= wrong
        return correct, np.where(correct, 0.1, cost)

    def test_three_clearly_worse_penalties_in_a_row_end_the_path(self) -> None:
        turn = Turn()
        answers = [turn.reached(*self.scored(wrong, 3.0)) for wrong in (80, 60, 70, 75, 80)]
        assert answers == [False, False, False, False, True]

    def test_a_better_penalty_between_them_starts_the_count_again(self) -> None:
        turn = Turn()
        answers = [turn.reached(*self.scored(wrong, 3.0)) for wrong in (60, 70, 75, 58, 70, 75, 80)]
        assert answers == [False] * 6 + [True]

    def test_a_difference_within_the_error_ends_nothing(self) -> None:
        """Two rows of 400 more: as likely by chance."""
        turn, dice = Turn(), np.random.default_rng(0)
        for _ in range(20):
            correct = dice.random(400) > 0.15
            assert not turn.reached(correct, np.where(correct, 0.1, 3.0))

    def test_worse_losses_of_equal_answers_end_nothing(self) -> None:
        turn = Turn()
        assert not any(turn.reached(*self.scored(60, cost)) for cost in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_path_ends_early_and_chooses_what_the_whole_path_would(classes: int) -> None:
    x, y = rows(2500, 300, classes, noise=1.5)
    train, held = slice(0, 600), slice(600, 2500)
    found = choose_penalty(x[train], y[train], classes, PATH, (x[held], y[held]))
    assert len(found.penalties) < len(PATH) and found.penalties == PATH[: len(found.penalties)]
    exact = fit_path(x[train], y[train], classes, PATH)
    logits = [x[held] @ one.weight.T + one.bias for one in exact]
    accuracy = [float((found.argmax(1) == y[held]).mean()) for found in logits]
    assert max(accuracy) - accuracy[PATH.index(found.C)] < 0.003
    # What was compared is what the exact solutions say, to about the tolerance.
    loss = [-float(log_softmax(one, axis=1)[np.arange(1900), y[held]].mean()) for one in logits]
    np.testing.assert_allclose(found.log_loss[:, 0], loss[: len(found.penalties)], rtol=0.01)


@pytest.mark.parametrize("solve", [fit_logistic, fit_exact])
@pytest.mark.parametrize("by", ["validation", "folds"])
def test_a_chosen_penalty_gives_the_head_of_that_penalty(solve: Callable[..., Fit], by: str) -> None:
    (x, y), (held_out, y_held_out) = _overlapping(120, 0), _overlapping(80, 1)
    splits = LabelledFeatures(x, y), LabelledFeatures(held_out, y_held_out)
    asked = HeadSettings() if by == "validation" else HeadSettings(penalty="folds")
    chosen = solve(*splits, 2, asked)
    assert chosen.about is not None and chosen.about["C"] in PATH and chosen.about["C"] != 0.1
    given = solve(*splits, 2, HeadSettings(C=chosen.about["C"]))
    assert isinstance(chosen.best, Linear) and isinstance(given.best, Linear)
    np.testing.assert_allclose(chosen.best.weight, given.best.weight, rtol=0, atol=1e-5)
    np.testing.assert_allclose(chosen.best.bias, given.best.bias, rtol=0, atol=1e-5)
    assert chosen.about["penalties_tried"] <= len(PATH)


def test_both_heads_choose_the_same_penalty_also_of_several_labels() -> None:
    dice = np.random.default_rng(0)
    x = dice.standard_normal((200, 30)).astype(np.float32)
    y = (x[:, :3] + 2 * dice.standard_normal((200, 3)) > 0).astype(np.uint8)
    splits = LabelledFeatures(x[:100], y[:100]), LabelledFeatures(x[100:], y[100:])
    one, other = (solve(*splits, 3, HeadSettings()).about for solve in (fit_logistic, fit_exact))
    assert one is not None and other is not None and one["C"] == other["C"] < 1


def test_no_choice_is_made_where_the_penalty_is_given() -> None:
    for asked, choice, C in [
        (HeadSettings(), "validation", 0.1),
        (HeadSettings(C=3.0), "fixed", 3.0),
        (HeadSettings(penalty="fixed"), "fixed", 0.1),
        (HeadSettings(C=3.0, penalty="folds"), "folds", 3.0),
    ]:
        assert (asked.penalty_choice, asked.fixed_C) == (choice, C)
