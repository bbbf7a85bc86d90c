"""Standardisation of features, all at once and some rows at a time."""

from __future__ import annotations

import numpy as np
import pytest

import featcache.heads.features
from featcache.heads.features import Standard
from tests.support.feature_rows import clusters, standardised


def test_standard_gives_what_numpy_gives() -> None:
    x = clusters(50)[0]
    np.testing.assert_allclose(Standard.of(x)(x), standardised(x)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("numbers", [1 << 22, 40])
def test_standard_some_rows_at_a_time_is_that_of_all_rows(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featcache.heads.features, "NUMBERS_AT_ONCE", numbers)
    x = np.concatenate([clusters(70)[0], np.full((70, 1), 0.1, np.float32)], axis=1)
    found = Standard.of(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.scale[:-1], x.std(axis=0, dtype=np.float64)[:-1], rtol=1e-12)
    assert found.scale[-1] == 1
