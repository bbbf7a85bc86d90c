"""Heads that may give no answer, from features to a head with its record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import HeadError, UsageError
from featcache.heads.features import LabelledFeatures
from featcache.heads.head import Head
from featcache.heads.registry import fit_exact
from featcache.runs.abstain import abstention_record, divide, rows_of, with_abstention
from featcache.runs.finish import calibrate
from featcache.settings import AbstentionSettings, HeadSettings
from tests.support.abstaining import features_of
from tests.support.feature_rows import clusters, tagged

CLASSES = 4


def rows(count: int, seed: int, noise: float = 0.8) -> LabelledFeatures:
    return clusters(count, 8, CLASSES, seed, noise)


def trained(seed: int, asked: AbstentionSettings, without: int | None = None, validation: int = 900) -> Head:
    """A head on made-up rows, those of the class `without` left out."""
    train, held_out = rows(1500, 3 * seed), rows(validation, 3 * seed + 1)
    if without is not None:
        train, held_out = (
            LabelledFeatures(one.x[one.y != without], one.y[one.y != without]) for one in (train, held_out)
        )
    known, asking = features_of("train", train, CLASSES), features_of("validation", held_out, CLASSES)
    parts = divide(asking, asked)
    chosen = rows_of(asking, parts.choice)
    fit = fit_exact(train, LabelledFeatures(chosen.x, chosen.y), CLASSES, HeadSettings(C=1.0))
    head, _ = calibrate(fit.best, chosen, "exact")
    return with_abstention(head, asked, known, asking, parts, seed)


@pytest.mark.parametrize(("heads", "most"), [(8, 3), pytest.param(20, 5, marks=pytest.mark.slow)])
def test_the_error_among_answers_exceeds_the_level_no_more_often_than_promised(heads: int, most: int) -> None:
    """Each head is trained and calibrated on rows of its own; many more rows tell its true error."""
    asked, many = AbstentionSettings(max_error=0.05, confidence=0.9), rows(10_000, 9999)
    above, answered = 0, []
    for seed in range(heads):
        head = trained(seed, asked)
        shares = head.predict_proba(many.x)
        assert head.abstention is not None
        yes = head.abstention.judge(shares.max(axis=1), many.x).answered
        above += (shares.argmax(axis=1) != many.y)[yes].mean() > 0.05
        answered.append(yes.mean())
    assert above <= most  # a tenth are promised; more than that would come once in a hundred such tests
    assert np.mean(answered) > 0.5


@pytest.mark.parametrize("without", range(CLASSES))
def test_rows_of_a_class_that_was_left_out_are_answered_less(without: int) -> None:
    head = trained(1, AbstentionSettings(coverage=0.9), without)
    asked, found = rows(4000, 77), head.abstention
    assert found is not None and max(found.areas.values()) > 0.6
    judged = found.judge(head.predict_proba(asked.x).max(axis=1), asked.x)
    new = asked.y == without
    assert judged.answered[~new].mean() > 0.85
    assert judged.answered[new].mean() < judged.answered[~new].mean() - 0.2
    assert judged.out_of_scope[new].mean() > judged.out_of_scope[~new].mean() + 0.2


def test_validation_is_divided_by_its_texts_and_without_those_of_train() -> None:
    validation, leaked = features_of("validation", rows(600, 1), CLASSES), np.arange(600) < 60
    hashes = validation.row_hash.copy()
    hashes[60:120] = hashes[120:180]  # equal texts
    parts = divide(replace(validation, row_hash=hashes), AbstentionSettings(max_error=0.1), leaked)
    assert not set(parts.choice) & set(parts.guarantee)
    assert sorted([*parts.choice, *parts.guarantee]) == list(range(60, 600))
    assert 0.25 < len(parts.choice) / 540 < 0.42
    for equal in range(60, 120):
        assert (equal in parts.choice) == (equal + 60 in parts.choice)


def test_bad_levels_are_refused_before_anything_is_trained() -> None:
    validation = features_of("validation", rows(90, 2), CLASSES)
    with pytest.raises(HeadError, match=r"--max-error 0\.02 with 95 % confidence needs 149 validation rows"):
        divide(validation, AbstentionSettings(max_error=0.02))
    with pytest.raises(UsageError, match="both set"):
        divide(validation, AbstentionSettings(max_error=0.1, coverage=0.9))
    several = features_of("validation", tagged(90, 8, CLASSES), CLASSES)
    with pytest.raises(HeadError, match="several labels a row has no single answer"):
        divide(several, AbstentionSettings(max_error=0.1))
    with pytest.raises(HeadError, match="here 0"):
        divide(validation, AbstentionSettings(max_error=0.1), np.ones(90, bool))


def test_the_record_says_what_the_head_does_on_each_split() -> None:
    head, test = trained(2, AbstentionSettings(max_error=0.05)), rows(800, 5)
    features = {split: features_of(split, test, CLASSES) for split in ("train", "validation", "test")}
    found = abstention_record(head, features)
    assert found is not None and head.abstention is not None
    assert list(found.splits) == ["validation", "test"]
    assert found.splits["validation"].rows == len(head.abstention.guarantee.wrong)
    own, shares = found.splits["test"], head.predict_proba(test.x)
    judged, wrong = head.abstention.judge(shares.max(axis=1), test.x), shares.argmax(axis=1) != test.y
    assert (own.rows, own.answered, own.wrong) == (800, judged.answered.sum(), wrong[judged.answered].sum())
    assert own.wrong_in_all == wrong.sum() and own.curve[-1] == (1.0, wrong.mean())
    assert own.risk is not None and own.risk < own.wrong_in_all / own.rows
    assert found.highest_risk <= 0.05
    assert abstention_record(replace(head, abstention=None), features) is None
