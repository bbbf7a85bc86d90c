"""How a head that predicts numbers is scored: what `finish` asks of it for each split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from featcache.cache.catalog import Features
from featcache.evaluation.numbers import NumberScores, number_intervals, score_numbers
from featcache.heads.head import Head
from featcache.runs.numbers.predictions import NumberPredictions


class NumberScoring:
    """Scores of predicted numbers, float64 `[N]`, against labels."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def outputs(self, x: np.ndarray) -> np.ndarray:
        return self.head.predict_numbers(x)

    def score(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> NumberScores:
        """Of outputs and labels of some rows each; ranks need them all at once."""
        outputs, labels = map(np.concatenate, zip(*parts, strict=True))
        return score_numbers(labels, outputs)

    def intervals(self, outputs: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float]]:
        return number_intervals(y, outputs)

    def predictions(
        self, features: Features, outputs: np.ndarray, leaked: np.ndarray | None
    ) -> NumberPredictions:
        return NumberPredictions(np.asarray(features.row_hash), np.asarray(features.y), outputs, leaked)
