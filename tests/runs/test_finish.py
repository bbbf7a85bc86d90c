"""The temperature that a head gets on validation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.runs.finish import choose_temperature

NAMES = ("bad", "good")


def drawn(seed: int, factor: float, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N, 2]` that are `factor` times too large, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, 2))
    odds = np.exp(logits[:, 1] - logits[:, 0])
    return factor * logits, (rng.random(rows) < odds / (1 + odds)).astype(np.int64)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.9, 1.0, 1.1, 3.0]))
def test_choose_temperature_never_makes_calibration_worse(seed: int, factor: float) -> None:
    temperature, before, after = choose_temperature(*drawn(seed, factor), NAMES)
    assert after.ece <= before.ece and after.log_loss <= before.log_loss
    assert (temperature == 1) == (after is before)


def test_choose_temperature_keeps_a_fitted_one_that_helps() -> None:
    temperature, before, after = choose_temperature(*drawn(0, 4.0), NAMES)
    assert temperature == pytest.approx(4, rel=0.25) and after.ece < before.ece / 2


def test_choose_temperature_leaves_out_one_with_a_larger_calibration_error() -> None:
    from featcache.evaluation.calibration import fit_temperature

    data = next(found for found in (drawn(seed, 1.0) for seed in range(50)) if refused(*found))
    assert fit_temperature(*data) != 1.0 and choose_temperature(*data, NAMES)[0] == 1.0


def refused(logits: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the temperature with the lowest log loss makes the calibration error larger."""
    from featcache.evaluation.calibration import fit_temperature
    from featcache.evaluation.metrics import score
    from featcache.heads.probabilities import probabilities_of

    plain, scaled = (
        score(probabilities_of(logits, by, multi_label=False), labels, NAMES).ece
        for by in (1.0, fit_temperature(logits, labels))
    )
    return scaled > plain


def test_choose_temperature_of_rows_that_are_all_right_is_1() -> None:
    assert choose_temperature(np.array([[3.0, -3.0], [-1.0, 2.0]]), np.array([0, 1]), NAMES)[0] == 1.0
