"""Which validation rows choose and which guarantee, and what a head that may give no answer does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from featcache.cache.catalog import Features
from featcache.errors import HeadError, UsageError
from featcache.evaluation.abstention import Selection, risk_coverage
from featcache.evaluation.costs import cheapest
from featcache.heads.abstention.abstention import Abstention, JudgedRows, check_rows
from featcache.heads.abstention.scope import (
    NoDistance,
    ScopeDistance,
    choose_distance,
    dense_part,
    distances_of,
    fit_distance,
)
from featcache.heads.features import LabelledFeatures
from featcache.heads.head import Head
from featcache.runs.record import AbstentionRecord, SelectiveScores
from featcache.settings import AbstentionSettings
from featcache.system.sharded_array import slices_of

ROWS_AT_ONCE = 8192


class ValidationParts(NamedTuple):
    """Row numbers of validation, without those that leak: a third that may choose, and the others."""

    choice: np.ndarray
    guarantee: np.ndarray


def divide(
    validation: Features, asked: AbstentionSettings, leaked: np.ndarray | None = None
) -> ValidationParts:
    """Divide validation by the row hashes, so that equal texts are in one part, in every run the same way.

    Args:
        leaked: bool `[N]`, which rows train has, too; they are in neither part.

    Raises:
        UsageError: two levels.
        HeadError: several labels a row, or too few rows for the level.
    """
    if asked.max_error is not None and asked.coverage is not None:
        raise UsageError("max_error and coverage are both set", hint="give one of them")
    if validation.y.ndim == 2:
        raise HeadError(
            f"{asked.flag}: a head for several labels a row has no single answer to hold back",
            hint="leave it away; each label has a threshold of its own",
        )
    parts = choice_and_guarantee(validation, leaked)
    check_rows(asked, len(parts.guarantee))
    if not len(parts.choice):
        raise HeadError(f"{asked.flag}: no validation row is left to choose by", hint="use more of them")
    return parts


def choice_and_guarantee(validation: Features, leaked: np.ndarray | None) -> ValidationParts:
    """As `divide`, whatever the parts are for."""
    choice = np.asarray(validation.row_hash)[:, 0] % 3 == 0
    new = np.ones(len(choice), bool) if leaked is None else ~leaked
    return ValidationParts(np.flatnonzero(new & choice), np.flatnonzero(new & ~choice))


def rows_of(features: Features, rows: np.ndarray) -> Features:
    """Some rows, in memory."""
    return replace(features, x=features.x[rows], y=features.y[rows], row_hash=features.row_hash[rows])


def with_abstention(
    head: Head,
    asked: AbstentionSettings,
    train: Features,
    validation: Features,
    parts: ValidationParts,
    seed: int,
) -> Head:
    """The head, which gives no answer where that is better.

    Args:
        parts: of `validation`; the head may have been chosen on `parts.choice`.
        seed: of the train rows that are drawn.

    Raises:
        HeadError: the guarantee rows do not support what was asked for.
    """
    classes = len(head.label_names)
    known, chosen = dense_part(train.x), dense_part(validation.x)
    areas: dict[str, float] = {}
    distance: ScopeDistance = NoDistance()
    if known is not None and chosen is not None:
        rows = LabelledFeatures(known, train.y)
        asking = LabelledFeatures(chosen[parts.choice], validation.y[parts.choice])
        areas = choose_distance(rows, asking, classes, seed)
        distance = fit_distance(next(iter(areas)), rows, classes, seed)
    choice, guarantee = (_judged(head, distance, validation, rows) for rows in parts)
    return replace(head, abstention=Abstention(asked, distance, areas, choice, guarantee).at(asked))


def _judged(
    head: Head, distance: ScopeDistance, features: Features, rows: np.ndarray | None = None
) -> JudgedRows:
    """What the head says of rows, all by default; only some of their features are in memory at a time."""
    numbers = np.arange(len(features.y)) if rows is None else rows
    probability, far = np.empty((2, len(numbers)))
    wrong = np.empty(len(numbers), bool)
    for part in slices_of(len(numbers), ROWS_AT_ONCE):
        x, y = features.x[numbers[part]], features.y[numbers[part]]
        shares = head.predict_proba(x)
        predicted = cheapest(shares, head.costs)
        probability[part], far[part] = shares[np.arange(len(y)), predicted], distances_of(distance, x)
        wrong[part] = predicted != y
    return JudgedRows(probability, far, wrong)


def abstention_record(head: Head, features: Mapping[str, Features]) -> AbstentionRecord | None:
    """What a head that may give no answer does on each split but train; of validation on guarantee rows."""
    found = head.abstention
    if found is None:
        return None
    judged = {"validation": found.guarantee}
    judged |= {
        split: _judged(head, found.distance, part)
        for split, part in features.items()
        if split not in ("train", "validation")
    }
    return AbstentionRecord(
        **vars(found.asked),
        threshold=found.threshold,
        highest_risk=found.highest_risk,
        distance=found.distance.kind,
        areas=found.areas,
        choice_rows=len(found.choice.wrong),
        splits={split: _scores(found, rows) for split, rows in judged.items()},
    )


def _scores(abstention: Abstention, rows: JudgedRows) -> SelectiveScores:
    scored = abstention.scored(rows)
    found, curve = Selection.of(scored, abstention.threshold), risk_coverage(scored)
    return SelectiveScores(
        rows=found.rows,
        answered=found.answered,
        wrong=found.wrong,
        wrong_in_all=int(rows.wrong.sum()),
        out_of_scope=int((rows.distance > abstention.limit).sum()),
        area=curve.area,
        curve=curve.points,
    )
