"""The expected calibration error of probabilities, for comparison with reported numbers."""

from __future__ import annotations

import numpy as np

from featcache.evaluation.metrics import BINS, calibration_gaps


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """By the formula at `calibration_gaps`, 0 to 1; `labels` are int `[N]` or multi-hot `[N, C]`."""
    return float(np.abs(calibration_gaps(probabilities, labels, bins).mean(axis=0)).sum())
