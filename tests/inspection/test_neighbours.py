"""Neighbours of texts, against scikit-learn and a full matrix of cosines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from featcache.inspection.neighbours import Neighbourhood, neighbourhood
from featcache.system.progress import Progress


def find(x: np.ndarray, sizes: Sequence[int], **how: float) -> Neighbourhood:
    return neighbourhood(lambda numbers: x[numbers], sizes, **how)  # type: ignore[arg-type]


def centred(x: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    moved = x.astype(np.float64) - x[: sizes[0] or len(x)].mean(axis=0, dtype=np.float64)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def made(rows: int, width: int = 5, seed: int = 0) -> np.ndarray:
    """Features that all point much the same way, as a Transformer's do; every third nearly repeats one."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, width)) + 20
    x[::3] = x[np.roll(np.arange(rows), 7)[::3]] + 1e-3 * draw.normal(size=(len(x[::3]), width))
    return x.astype(np.float32)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(0, 99), st.sampled_from([3, 7, 64]))
def test_neighbourhood_matches_a_full_matrix_of_cosines(sizes: list[int], seed: int, tile: int) -> None:
    x = made(sum(sizes), seed=seed)
    if sizes[0] == 1:
        x[0] += 0.1  # not the centre itself
    found = find(x, sizes, threshold=0.95, neighbours=4, tile=tile)
    if sizes[0] == 1:  # the centre is that one text, which then has no direction
        assert (found.cosine[:, 0] <= 0).all()
        return
    unit = centred(x, sizes)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    ends = np.cumsum([0, *sizes])
    for part, (start, end) in enumerate(itertools.pairwise(ends.tolist())):
        inside = cosines[:, start:end]
        best = inside.max(axis=1)
        has = np.isfinite(best)
        assert np.allclose(found.cosine[part, has], best[has], atol=1e-5)
        assert (found.cosine[part, ~has] == -1).all() and (found.nearest[part, ~has] == -1).all()
        chosen = found.nearest[part, has]
        assert (chosen >= start).all() and (chosen < end).all()
        assert np.allclose(cosines[np.flatnonzero(has), chosen], best[has], atol=1e-5)
    clear = np.abs(cosines - 0.95) > 1e-4
    if clear.all():
        expected = connected_components(csr_array(cosines >= 0.95), directed=False)[1]
        same = expected[:, None] == expected
        assert ((found.group[:, None] == found.group) == same).all()
        assert all(found.group[row] == np.flatnonzero(same[row])[0] for row in range(len(x)))


def test_neighbourhood_distance_matches_scikit_learn() -> None:
    x, sizes = made(200, seed=3), (150, 50)
    found, unit = find(x, sizes, neighbours=6), centred(x, sizes)
    train = NearestNeighbors(n_neighbors=7, metric="cosine").fit(unit[:150])
    own = train.kneighbors(unit[:150])[0][:, 1:].mean(axis=1)  # without itself
    others = train.kneighbors(unit[150:], n_neighbors=6)[0].mean(axis=1)
    assert np.allclose(found.distance, np.concatenate([own, others]), atol=1e-5)


def test_neighbourhood_of_fewer_texts_than_neighbours() -> None:
    x = made(4, seed=1)
    found, unit = find(x, (3, 1), neighbours=10), centred(x, (3, 1))
    expected = 1 - unit @ unit[:3].T
    assert np.allclose(found.distance[3], expected[3].mean(), atol=1e-5)
    assert np.allclose(found.distance[0], expected[0, 1:].mean(), atol=1e-5)
    assert np.isnan(find(x[:1], (1,)).distance).all()


def test_neighbourhood_subtracts_a_common_direction() -> None:
    x = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32) + 100
    plain = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert (plain @ plain.T).min() > 0.99  # what a plain cosine would say
    found = find(x, (50,), threshold=0.95)
    assert (found.group == np.arange(50)).all()


def test_neighbourhood_puts_equal_features_in_one_group() -> None:
    x = np.concatenate([np.ones((300, 3)), [[1, 2, 3]], [[5, 1, 0]]]).astype(np.float16)
    found = find(x, (302,), threshold=0.99)
    assert (found.group[:300] == 0).all() and found.group[300:].tolist() == [300, 301]
    assert np.allclose(found.cosine[0, :300], 1, atol=1e-6) and found.cosine.max() <= 1


def test_neighbourhood_progress_ends_at_the_total() -> None:
    steps: list[Progress] = []
    neighbourhood(lambda n: made(50)[n], (30, 20), tile=16, on_progress=steps.append)
    assert steps[-1].done == steps[-1].total
    assert all(a.done < b.done for a, b in itertools.pairwise(steps))


@pytest.mark.slow
def test_neighbourhood_memory_does_not_grow_with_the_square_of_the_rows() -> None:
    import tracemalloc

    x = made(20_000, width=16)
    tracemalloc.start()
    find(x, (20_000,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # the matrix alone would be 1.6 GB
