"""Which rows of train are held out for validation."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.data.holdout import stratified_share

class_counts = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@given(counts=class_counts, share=st.floats(0.01, 0.99), seed=st.integers())
def test_stratified_share_of_each_class(counts: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    keep, held = stratified_share(labels, share, seed)
    assert sorted([*keep, *held]) == list(range(len(labels)))
    assert (np.diff(keep) > 0).all() and (np.diff(held) > 0).all()
    for label, count in enumerate(counts):
        part = int((labels[held] == label).sum())
        assert abs(part - count * share) <= 1
        assert 1 <= part < count if count > 1 else part == 0
    again = stratified_share(labels, share, seed)
    assert (again[0] == keep).all() and (again[1] == held).all()


@st.composite
def multi_hot(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(st.integers(1, 60), st.integers(1, 8)))
    density = draw(st.sampled_from([0.05, 0.3, 0.9]))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).random(shape)
    return np.asarray(noise < density, np.uint8)


@given(labels=multi_hot(), share=st.floats(0.01, 0.99), seed=st.integers())
def test_stratified_share_keeps_a_row_of_every_label(labels: np.ndarray, share: float, seed: int) -> None:
    keep, held = stratified_share(labels, share, seed)
    assert sorted([*keep, *held]) == list(range(len(labels)))
    assert (np.diff(keep) > 0).all() and (np.diff(held) > 0).all() and len(keep) > 0
    assert (labels[keep].any(axis=0) == labels.any(axis=0)).all()
    again = stratified_share(labels.copy(), share, seed)
    assert (again[0] == keep).all() and (again[1] == held).all()


def test_stratified_share_of_multi_label_rows_is_near_each_labels_share() -> None:
    """Nearer to each label's share than random rows are, and as large as asked, with a long tail."""
    draw = np.random.default_rng(0)
    labels = np.asarray(draw.random((4000, 100)) < 0.3 / np.arange(1, 101), np.uint8)
    wanted = 0.1 * labels.sum(axis=0, dtype=np.int64)
    errors: dict[str, list[float]] = {"stratified": [], "random": []}
    for seed in range(5):
        held = stratified_share(labels, 0.1, seed)[1]
        assert abs(len(held) - 400) <= 8
        for name, rows in (("stratified", held), ("random", draw.permutation(4000)[:400])):
            errors[name].append(float(np.abs(labels[rows].sum(axis=0) - wanted).mean()))
    assert max(errors["stratified"]) < 0.5 * min(errors["random"])
    one, two = (stratified_share(labels, 0.1, seed)[1] for seed in (0, 1))
    assert set(one) != set(two)


def test_stratified_share_keeps_one_row_of_each_label() -> None:
    labels = np.repeat(np.eye(6, dtype=np.uint8), 2, axis=0)
    keep, held = stratified_share(labels, 0.99, 0)
    assert (labels[keep].sum(axis=0) == 1).all() and len(held) == 6
    bare = np.zeros((10, 3), np.uint8)
    assert len(stratified_share(bare, 0.2, 0)[1]) == 2


def test_stratified_share_depends_on_the_seed_only() -> None:
    labels = np.arange(1000) % 2
    one, two = (stratified_share(labels, 0.1, seed)[1] for seed in (0, 1))
    assert len(one) == len(two) == 100 and set(one) != set(two)
    assert one[:5].tolist() == [2, 3, 11, 13, 20]
