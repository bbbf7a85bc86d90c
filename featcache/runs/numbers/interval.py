"""The interval of a head that predicts numbers: which rows it is from, and what it contains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from featcache.cache.catalog import Features
from featcache.evaluation.metrics import row_parts
from featcache.heads.head import Head
from featcache.heads.numbers.scale import conformal_interval, rows_for, too_few_rows
from featcache.runs.abstain import ValidationParts, choice_and_guarantee
from featcache.runs.numbers.predictions import NumberPredictions
from featcache.settings import HeadSettings

DEFAULT_LEVEL = 0.9


def interval_parts(
    validation: Features, leaked: np.ndarray | None, asked: HeadSettings
) -> ValidationParts | None:
    """Which validation rows choose and which guarantee the interval; None where they are too few for one.

    Raises:
        HeadError: they are too few, and the level was asked for.
    """
    level = asked.interval or DEFAULT_LEVEL
    parts = choice_and_guarantee(validation, leaked)
    if len(parts.choice) and len(parts.guarantee) >= rows_for(level):
        return parts
    if asked.interval is None:
        return None
    raise too_few_rows(level, len(parts.guarantee) if len(parts.choice) else 0)


def with_interval(head: Head, validation: Features, parts: ValidationParts, asked: HeadSettings) -> Head:
    """The head with the interval that the guarantee rows of validation support."""
    assert head.numbers is not None
    rows = parts.guarantee
    errors = np.concatenate([
        np.abs(head.predict_numbers(validation.x[rows[some]]) - validation.y[rows[some]])
        for some in row_parts(len(rows))
    ])  # fmt: skip
    interval = conformal_interval(errors, asked.interval or DEFAULT_LEVEL)
    return replace(head, numbers=replace(head.numbers, interval=interval))


def covered_shares(head: Head, predictions: Mapping[str, NumberPredictions]) -> dict[str, float]:
    """The share of rows whose label is within the head's interval, by split that had no part in it.

    Rows that leak are left out. Empty for a head without an interval.
    """
    if head.numbers is None or head.numbers.interval is None:
        return {}
    half_width = head.numbers.interval.half_width
    return {
        split: float((np.abs(found.errors) <= half_width)[found.clean].mean())
        for split, found in predictions.items()
        if split not in ("train", "validation")
    }
