from __future__ import annotations

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.labelling.label_head import LabelHead
from featcache.labelling.pool import NEAR, TextPool
from featcache.labelling.strategies import FIRST, STRATEGIES, LabelledPool, Reason, choose, spread

NAMES = ("good", "bad", "late")


def clusters(sizes: tuple[int, ...] = (200, 80, 20), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features `[N, 16]` around a centre for each class, and the classes."""
    draw = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    centres = 4 * draw.standard_normal((len(sizes), 16))
    return (centres[y] + draw.standard_normal((len(y), 16))).astype(np.float32), y


def known(
    x: np.ndarray, y: np.ndarray, labelled: list[int], *, head: bool = True, seed: int = 0
) -> LabelledPool:
    pool, rows = TextPool.of(x), np.array(labelled, np.int64)
    fitted = LabelHead.fit(pool.x[rows], y[rows], int(y.max()) + 1) if head and labelled else None
    return LabelledPool(
        pool=pool, open=np.setdiff1d(np.arange(len(y)), rows),
        probabilities=None if fitted is None else fitted.probabilities(pool.x),
        counts=np.bincount(y[rows], minlength=int(y.max()) + 1), labelled=rows, seed=seed,
    )  # fmt: skip


def many(x: np.ndarray, y: np.ndarray) -> LabelledPool:
    """With enough labels that a head chooses."""
    return known(x, y, list(range(0, len(y), len(y) // (FIRST + 4))))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 12])
def test_each_strategy_chooses_different_open_texts(strategy: str, count: int) -> None:
    state = many(*clusters())
    rows = [one.row for one in choose(strategy, state, count)]
    assert len(set(rows)) == count
    assert set(rows) <= set(state.open.tolist())
    assert rows == [one.row for one in choose(strategy, state, count)]  # the same seed, the same texts


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_open_texts_are_chosen_where_more_are_wanted(strategy: str) -> None:
    x, y = clusters((30, 10, 5))
    state = known(x, y, [*range(0, 45, 2), 1, 3])
    assert sorted(one.row for one in choose(strategy, state, 1000)) == state.open.tolist()
    assert choose(strategy, known(x, y, list(range(45))), 5) == []


def test_an_unknown_strategy_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        choose("best", many(*clusters()), 1)
    assert "margin" in (caught.value.hint or "")


def test_the_first_texts_cover_every_cluster() -> None:
    x, y = clusters((300, 30, 12, 8))
    rows = spread(known(x, y, []), FIRST)
    assert set(y[rows]) == {0, 1, 2, 3}
    missed = spread(known(x, y, np.flatnonzero(y < 3)[::7].tolist()), 1)
    assert y[missed[0]] == 3  # what has labels is covered already


@pytest.mark.parametrize("strategy", ["margin", "entropy", "mixed"])
def test_texts_are_spread_while_there_are_few_labels(strategy: str) -> None:
    x, y = clusters()
    found = choose(strategy, known(x, y, [0, 220, 290]), 5)
    assert [one.reason.kind for one in found] == ["spread"] * 5


def test_margin_chooses_where_two_labels_are_nearest() -> None:
    x, y = clusters()
    state = many(x, y)
    assert state.probabilities is not None
    (chosen,) = choose("margin", state, 1)
    top = np.sort(state.probabilities[state.open], axis=1)
    assert chosen.row == state.open[(top[:, -1] - top[:, -2]).argmin()]
    order = np.argsort(-state.probabilities[chosen.row])
    assert chosen.reason == Reason("between", (int(order[0]), int(order[1])))
    assert chosen.reason.sentence(NAMES) == f"between {NAMES[order[0]]} and {NAMES[order[1]]}"


def test_entropy_chooses_the_highest() -> None:
    state = many(*clusters())
    assert state.probabilities is not None
    p = state.probabilities[state.open]
    assert choose("entropy", state, 1)[0].row == state.open[(-p * np.log(p)).sum(axis=1).argmax()]


def test_typiclust_asks_about_the_largest_cluster_without_labels() -> None:
    x, y = clusters((100, 80, 60, 40))
    state = known(x, y, [], head=False)
    rows = [one.row for one in choose("typiclust", state, 4)]
    assert set(y[rows]) == {0, 1, 2, 3}
    middle = x[y == y[rows[0]]].mean(axis=0)
    distance = np.linalg.norm(x[y == y[rows[0]]] - middle, axis=1)
    assert np.linalg.norm(x[rows[0]] - middle) < np.median(distance)  # typical, not at the edge


def test_mixed_asks_for_the_labels_that_are_rare_so_far() -> None:
    x, y = clusters((400, 60, 30))
    x = x + 2.5 * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    state = known(x, y, [*range(0, 400, 20), 400, 410, 460])
    assert state.probabilities is not None
    rows = [one.row for one in choose("mixed", state, 20) if one.reason.kind == "between"]
    guessed = state.probabilities[rows].argmax(axis=1)
    there = np.bincount(state.probabilities[state.open].argmax(axis=1), minlength=3)
    asked = np.bincount(guessed, minlength=3)
    assert asked[1] + asked[2] >= min(10, there[1] + there[2])


@pytest.mark.parametrize("strategy", ["margin", "entropy", "mixed"])
def test_a_batch_has_no_near_duplicates(strategy: str) -> None:
    x, y = clusters()
    copies = np.repeat(x, 3, axis=0) + 1e-3
    state = many(copies, np.repeat(y, 3))
    rows = np.array([one.row for one in choose(strategy, state, 10) if one.reason.kind != "unlike"])
    alike = state.pool.cosines(rows, rows)
    np.fill_diagonal(alike, 0)
    assert alike.max() < NEAR


def test_several_labels_are_chosen_by_the_one_that_is_nearest_to_one_half() -> None:
    x, y = clusters()
    hot = np.eye(3, dtype=np.uint8)[y]
    hot[:40, 2] = 1
    pool, rows = TextPool.of(x), np.arange(0, 300, 10)
    head = LabelHead.fit(pool.x[rows], hot[rows], 3)
    assert head is not None
    p = head.probabilities(pool.x)
    assert np.abs(p.sum(axis=1) - 1).max() > 0.01  # independent
    state = LabelledPool(
        pool=pool, open=np.setdiff1d(np.arange(300), rows), probabilities=p, counts=hot[rows].sum(axis=0),
        labelled=rows, seed=0, multi_label=True,
    )  # fmt: skip
    (chosen,) = choose("margin", state, 1)
    near = np.abs(p[state.open] - 0.5)
    assert chosen.row == state.open[near.min(axis=1).argmin()]
    assert chosen.reason.sentence(NAMES) == f"perhaps {NAMES[np.abs(p[chosen.row] - 0.5).argmin()]}"
    assert len(choose("entropy", state, 5)) == len(choose("mixed", state, 5)) == 5


def test_a_head_needs_two_classes() -> None:
    x, y = clusters()
    pool = TextPool.of(x)
    assert LabelHead.fit(pool.x[:5], y[:5], 3) is None
    assert LabelHead.fit(pool.x[:0], y[:0], 3) is None
    head = LabelHead.fit(pool.x[150:250], y[150:250], 3)
    assert head is not None
    p = head.probabilities(pool.x)
    assert p[:, 2].max() < 1e-6  # no label of the third class
    assert (p.argmax(axis=1) == y)[y < 2].mean() > 0.95


def test_probabilities_are_calibrated_by_texts_it_did_not_learn_from() -> None:
    x, y = clusters((400, 400))
    pool = TextPool.of(x + 3 * np.random.default_rng(2).standard_normal(x.shape).astype(np.float32))
    head = LabelHead.fit(pool.x[::16], y[::16], 2)
    assert head is not None
    assert head.calibrated(pool.x[:10], y[:10]) is head  # too few
    found = head.calibrated(pool.x[1:800:4], y[1:800:4])
    p, right = found.probabilities(pool.x[2::4]), y[2::4]
    assert (p.argmax(axis=1) == head.probabilities(pool.x[2::4]).argmax(axis=1)).all()
    accuracy = (p.argmax(axis=1) == right).mean()
    assert abs(p.max(axis=1).mean() - accuracy) < 0.06
    sure = np.flatnonzero(found.probabilities(pool.x).argmax(axis=1) == y)[:20]
    assert head.calibrated(pool.x[sure], y[sure]).probabilities(pool.x[sure]).max(axis=1).mean() < 0.99


def test_a_head_that_begins_at_the_last_one_is_the_same() -> None:
    x, y = clusters()
    pool, rows = TextPool.of(x), np.arange(0, 300, 3)
    before = LabelHead.fit(pool.x[rows[:-10]], y[rows[:-10]], 3)
    fresh, again = (LabelHead.fit(pool.x[rows], y[rows], 3, before=one) for one in (None, before))
    assert fresh is not None and again is not None
    assert np.abs(fresh.probabilities(pool.x) - again.probabilities(pool.x)).max() < 5e-3
    more = LabelHead.fit(pool.x[rows], y[rows], 4, before=before)  # another label: from the beginning
    assert more is not None and len(more.bias) == 4
