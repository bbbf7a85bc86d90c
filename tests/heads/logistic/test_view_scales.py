"""The scales of joined views: which are tried, and what an exact head does with them."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.heads.features import LabelledFeatures
from featcache.heads.logistic.view_scales import choose_view_scales, columns_scales
from featcache.heads.registry import fit_exact
from featcache.settings import HeadSettings
from featcache.system.progress import Progress
from featcache.system.sharded_array import join_columns


def test_a_scale_is_kept_where_the_loss_falls() -> None:
    tried: list[tuple[int, int]] = []

    def loss(columns: np.ndarray) -> float:
        assert columns.shape == (5,) and columns.dtype == np.float32
        return abs(columns[0] - 2.5) + abs(columns[-1] - 0.4)

    found = choose_view_scales([2, 3], loss, lambda *counts: tried.append(counts))
    np.testing.assert_allclose(found, [2.5, 0.4])
    assert tried == [(1, 5), (2, 5), (3, 5)]
    np.testing.assert_allclose(columns_scales(found, [2, 3]), [2.5, 2.5, 0.4, 0.4, 0.4], rtol=1e-6)


def made(count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """A view that tells two classes apart, and a wide one of noise."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, count)
    telling = draw.normal(size=(count, 6)) + 0.7 * y[:, None]
    return [telling.astype(np.float32), draw.normal(size=(count, 60)).astype(np.float32)], y


@pytest.mark.parametrize("fixed", [None, 0.05])
def test_a_view_of_noise_counts_less(fixed: float | None) -> None:
    (train, y), (held_out, z), (new, w) = made(150, 0), made(400, 1), made(2000, 2)
    rows = [LabelledFeatures(join_columns(x), labels) for x, labels in ((train, y), (held_out, z))]
    plain = fit_exact(*rows, 2, HeadSettings(C=fixed))
    events: list[Progress] = []
    scaled = fit_exact(*rows, 2, HeadSettings(C=fixed, view_scales=True), on_progress=events.append)
    assert scaled.about is not None and plain.about is not None and "view_scales" not in plain.about
    telling, noise = scaled.about["view_scales"]
    assert noise == 0.4 and telling >= 1
    assert any(event.stage == "scales" for event in events)
    x = np.concatenate(new, axis=1)
    right = [(fit.best.logits(x).argmax(axis=1) == w).mean() for fit in (plain, scaled)]
    assert right[1] > right[0] + 0.01


def test_one_view_has_nothing_to_scale() -> None:
    (train, y), (held_out, z) = made(100, 0), made(50, 1)
    rows = [LabelledFeatures(train[0], y), LabelledFeatures(held_out[0], z)]
    fit = fit_exact(*rows, 2, HeadSettings(view_scales=True))
    assert fit.about is not None and "view_scales" not in fit.about
