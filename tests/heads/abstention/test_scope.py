"""Out-of-scope distances: as their definition has them, in bounded memory, and the better one is found."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.errors import HeadError
from featcache.heads.abstention import scope
from featcache.heads.abstention.scope import DISTANCES, Mahalanobis, NearestRows, choose_distance, distance_of
from featcache.heads.features import LabelledFeatures
from tests.support.feature_rows import clusters, standardised

MEASURED = [kind for kind in DISTANCES if kind != "none"]
TRAIN, VALIDATION = clusters(900, 8, 4, 0, 0.7), clusters(300, 8, 4, 1, 0.7)


def test_mahalanobis_is_the_distance_to_the_nearest_mean_by_the_shared_covariance() -> None:
    from sklearn.covariance import ledoit_wolf

    found = Mahalanobis.fit(TRAIN, 4, 0).distances(VALIDATION.x)
    train, asked = standardised(*(part.x for part in (TRAIN, VALIDATION)))
    groups = [train[TRAIN.y == label] for label in range(4)]
    covariance = np.zeros((8, 8))
    for group in groups:  # each class is shrunk at unit variance, as in scikit-learn's discriminant
        spread = group.std(axis=0)
        covariance += len(group) / len(train) * ledoit_wolf(group / spread)[0] * np.outer(spread, spread)
    apart = [asked - group.mean(axis=0) for group in groups]
    inverse = np.linalg.inv(covariance)
    expected = np.min([np.einsum("nd,de,ne->n", one, inverse, one) for one in apart], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_nearest_rows_is_one_minus_the_tenth_highest_cosine() -> None:
    from sklearn.metrics.pairwise import cosine_similarity

    found = NearestRows.fit(TRAIN, 4, 0).distances(VALIDATION.x)
    train, asked = standardised(TRAIN.x, VALIDATION.x)
    expected = 1 - np.sort(cosine_similarity(asked, train), axis=1)[:, -10]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # rows are kept in 16 bits


@pytest.mark.parametrize("kind", MEASURED)
def test_a_distance_is_the_same_in_parts_and_after_it_was_saved(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scope.fit_distance(kind, TRAIN, 4, 0)
    whole = found.distances(VALIDATION.x)
    again = distance_of(kind, found.tensors())
    np.testing.assert_array_equal(again.distances(VALIDATION.x), whole)
    assert again.width == 8
    monkeypatch.setattr(scope, "QUERIES", 7)
    monkeypatch.setattr("featcache.heads.features.NUMBERS_AT_ONCE", 60)
    np.testing.assert_allclose(found.distances(VALIDATION.x), whole, rtol=1e-5, atol=1e-6)
    for name in found.tensors():
        with pytest.raises(HeadError, match=name):
            distance_of(kind, {key: part for key, part in found.tensors().items() if key != name})


def test_few_rows_and_features_of_no_use() -> None:
    """Fewer rows than neighbours, a class of one row, more features than rows, a constant feature."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(6, 12)).astype(np.float32)
    x[:, 3] = 2.0
    few = LabelledFeatures(x, np.array([0, 0, 0, 2, 2, 3]))
    for kind in DISTANCES:
        found = scope.fit_distance(kind, few, 5, 0)
        distances = found.distances(np.concatenate([x, 9 * draw.normal(size=(50, 12))]))
        assert np.isfinite(distances).all() and (distances >= 0).all()


def test_only_some_rows_are_kept_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "STORED_ROWS", 100)
    kept = NearestRows.fit(TRAIN, 4, 3)
    assert kept.rows.shape == (100, 8) and kept.rows.dtype == np.float16
    np.testing.assert_array_equal(kept.rows, NearestRows.fit(TRAIN, 4, 3).rows)
    monkeypatch.setattr(scope, "STORED_NUMBERS", 8 * 30)
    assert len(NearestRows.fit(TRAIN, 4, 3).rows) == 30


def test_leaving_classes_out_finds_the_better_distance() -> None:
    """Only the neighbours see a class that is new at the mean of another one."""
    assert min(choose_distance(TRAIN, VALIDATION, 4, 0).values()) > 0.8
    found = choose_distance(between(1200, 0), between(600, 1), 2, 0)
    assert list(found) == ["neighbours", "mahalanobis"]
    assert found["neighbours"] > found["mahalanobis"] + 0.1


def between(rows: int, seed: int) -> LabelledFeatures:
    """Class 0 lies where the mean of class 1 is, between its two halves, where class 1 has no row."""
    draw = np.random.default_rng(seed)
    y = np.arange(rows) % 2
    x = draw.normal(size=(rows, 3))
    x[:, 0] += np.where(y == 1, draw.choice([-9.0, 9.0], rows), 0)
    return LabelledFeatures(x.astype(np.float32), y)


def test_features_that_are_too_wide_are_compared_by_neighbours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "WIDEST", 7)
    assert list(choose_distance(TRAIN, VALIDATION, 4, 0)) == ["neighbours"]


def test_one_class_in_validation_gives_chance() -> None:
    one = LabelledFeatures(VALIDATION.x, np.zeros(300, np.int64))
    assert choose_distance(TRAIN, one, 4, 0) == {"mahalanobis": 0.5, "neighbours": 0.5}
