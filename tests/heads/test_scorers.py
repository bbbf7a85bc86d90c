"""Scorers against torch and scikit-learn; what they are on disk, and what is refused there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import featcache.heads.scorers
from featcache.errors import HeadError
from featcache.heads.scorers import METRICS, SCORERS, Attentive, Linear, Mlp, Neighbours, Scorer
from tests.support.feature_rows import clusters, standardised, tagged

draw = np.random.default_rng(7)


def float32(*shape: int) -> np.ndarray:
    return draw.normal(size=shape).astype(np.float32)


def linear() -> Linear:
    return Linear(float32(3, 5), float32(3))


def mlp() -> Mlp:
    return Mlp(float32(7, 5), float32(7), float32(3, 7), float32(3))


def neighbours(several: bool = False, **changes: Any) -> Neighbours:
    labels = draw.integers(0, 2, (40, 3)).astype(np.uint8) if several else draw.integers(0, 3, 40)
    parts = {
        "features": draw.normal(size=(40, 5)).astype(np.float16),
        "labels": labels,
        "classes": 3,
        "neighbours": 5,
        "mean": draw.normal(size=5),
        "scale": draw.uniform(0.5, 2, 5),
    }
    return Neighbours(**(parts | changes))


ANY = [linear, mlp, neighbours, lambda: neighbours(several=True)]
ANY_IDS = ["linear", "mlp", "neighbours", "neighbours of several labels"]
any_scorer = pytest.mark.parametrize("make", ANY, ids=ANY_IDS)

# ---------------------------------------------------------------- logits


def test_linear_equals_torch() -> None:
    scorer, x = linear(), float32(9, 5).astype(np.float16)
    expected = torch.nn.functional.linear(
        torch.tensor(x).float(), torch.tensor(scorer.weight), torch.tensor(scorer.bias)
    )
    np.testing.assert_allclose(scorer.logits(x), expected, rtol=0, atol=1e-5)


def test_mlp_equals_torch() -> None:
    scorer, x = mlp(), float32(9, 5).astype(np.float16)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    parts = (torch.tensor(part) for part in (scorer.w1, scorer.b1, scorer.w2, scorer.b2))
    for parameter, value in zip(network.parameters(), parts, strict=True):
        parameter.data = value
    expected = network(torch.tensor(x).float()).detach()
    np.testing.assert_allclose(scorer.logits(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("make", "rows"), [(linear, 140_000), (mlp, 20_000)])
def test_logits_of_many_rows_equal_those_of_single_rows(make: Callable[[], Scorer], rows: int) -> None:
    scorer, x = make(), float32(rows, 5)
    found = scorer.logits(x)
    assert found.shape == (rows, 3)
    for row in (0, 8191, 8192, 65_535, 65_536, 131_072, rows - 1):
        if row < rows:
            np.testing.assert_allclose(found[row], scorer.logits(x[row : row + 1])[0], rtol=0, atol=1e-5)


@any_scorer
def test_every_scorer_has_width_classes_and_float32_logits(make: Callable[[], Scorer]) -> None:
    scorer = make()
    assert (scorer.width, scorer.classes) == (5, 3)
    assert scorer.logits(float32(4, 5)).dtype == np.float32
    assert scorer.logits(np.zeros((0, 5), np.float16)).shape == (0, 3)
    for shape in ((4, 6), (5,), (1, 4, 5)):
        with pytest.raises(HeadError, match=r"wants features \[N, 5\]"):
            scorer.logits(np.zeros(shape, np.float32))


def test_parameters_counts_the_numbers() -> None:
    assert linear().parameters == 3 * 5 + 3
    assert (mlp().parameters, mlp().hidden) == (7 * 5 + 7 + 3 * 7 + 3, 7)
    assert neighbours().parameters == 40 * 5


@any_scorer
def test_logits_of_memory_mapped_rows(make: Callable[[], Scorer], tmp_path: Path) -> None:
    scorer, x = make(), float32(50, 5).astype(np.float16)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float16, "r", shape=(50, 5))
    np.testing.assert_array_equal(scorer.logits(mapped), scorer.logits(x))


# ---------------------------------------------------------------- neighbours


def as_sets(rows: np.ndarray) -> list[set[int]]:
    return [set(row.tolist()) for row in rows]


@given(
    rows=st.integers(1, 40),
    queries=st.integers(1, 12),
    share=st.floats(0, 1),
    metric=st.sampled_from(METRICS),
    blocks=st.sampled_from([(3, 4), (5, 1), (2048, 2048)]),
    seed=st.integers(0, 1000),
)
def test_nearest_equals_a_full_sort(
    rows: int, queries: int, share: float, metric: str, blocks: tuple[int, int], seed: int
) -> None:
    """Small integers: many equal rows, equal distances, rows of zeros; ties go to the row stored first."""
    die = np.random.default_rng(seed)
    stored, x = (die.integers(-2, 3, (n, 3)).astype(np.float32) for n in (rows, queries))
    k = 1 + int(share * (rows - 1))
    scorer = Neighbours(stored, np.zeros(rows, np.int64), 1, k, np.zeros(3), np.ones(3), metric)
    if metric == "euclidean":
        distances = ((x[:, None] - stored[None]) ** 2).sum(-1)
    else:
        from sklearn.metrics.pairwise import cosine_distances

        distances = cosine_distances(x, stored).astype(np.float64).round(5)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(featcache.heads.scorers, "QUERIES", blocks[0])
        patch.setattr(featcache.heads.scorers, "STORED", blocks[1])
        found = scorer.nearest(x)
    assert as_sets(found) == as_sets(expected)
    assert all(len(row) == k for row in as_sets(found))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("blocks", [(7, 9), (2048, 2048)])
def test_neighbours_logits_equal_scikit_learn(
    metric: str, several: bool, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    monkeypatch.setattr(featcache.heads.scorers, "QUERIES", blocks[0])
    monkeypatch.setattr(featcache.heads.scorers, "STORED", blocks[1])
    make = tagged if several else clusters
    (x, y), (queries, _) = make(200, width=8), make(60, width=8, seed=1)
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scorer = Neighbours(x, y, 4 if several else 3, 15, mean, scale, metric)
    train, test = standardised(x, queries)
    reference = KNeighborsClassifier(15, metric=metric, algorithm="brute").fit(train, y)
    logits = scorer.logits(queries).astype(np.float64)
    if several:
        expected = np.stack([part[:, 1] for part in reference.predict_proba(test)], axis=1)
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), (15 * expected + 0.5) / 16, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(logits > 0, reference.predict(test))
    else:
        expected = reference.predict_proba(test)
        np.testing.assert_allclose(np.exp(logits), (15 * expected + 1 / 3) / 16, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(logits.argmax(1), reference.predict(test))


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_of_a_row_do_not_depend_on_other_rows(metric: str) -> None:
    """Many stored duplicates with labels of their own: rounding must not choose among them."""
    base = np.random.default_rng(0).normal(size=(300, 48)).astype(np.float16)
    stored, labels = np.concatenate([base, base, base]), np.random.default_rng(1).integers(0, 5, 900)
    mean, scale = stored.mean(0, dtype=np.float64), stored.std(0, dtype=np.float64)
    scorer = Neighbours(stored, labels, 5, 2, mean, scale, metric)
    together = scorer.nearest(base)
    assert as_sets(together) == [{row, row + 300} for row in range(300)]
    for row in range(0, 300, 11):
        assert as_sets(scorer.nearest(base[row : row + 1])) == [{row, row + 300}]
    far = (np.random.default_rng(2).normal(size=(40, 48)) * 3).astype(np.float32)
    alone = np.concatenate([scorer.logits(far[row : row + 1]) for row in range(40)])
    np.testing.assert_array_equal(scorer.logits(far), alone)


def test_equal_votes_predict_the_first_class() -> None:
    x = np.array([[0.0], [1.0], [2.0], [9.0]], np.float32)
    scorer = Neighbours(x, np.array([2, 1, 2, 0]), 3, 2, np.zeros(1), np.ones(1), "euclidean")
    np.testing.assert_allclose(np.exp(scorer.logits(x[:1])), [[1 / 9, 4 / 9, 4 / 9]], rtol=1e-6)
    assert scorer.logits(x[:1]).argmax() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_refuse_nan_or_infinite_features(bad: float, metric: str) -> None:
    x = float32(4, 5)
    x[2, 1] = bad
    with pytest.raises(HeadError, match="NaN or infinite"):
        neighbours(metric=metric).logits(x)


@pytest.mark.parametrize("k", [0, -1, 41])
def test_neighbours_refuse_an_impossible_number(k: int) -> None:
    with pytest.raises(HeadError, match=f"{k} neighbours of 40 rows"):
        neighbours(neighbours=k)


def test_neighbours_refuse_an_unknown_metric() -> None:
    with pytest.raises(HeadError, match="unknown metric 'chebyshev'"):
        neighbours(metric="chebyshev")


def test_nearest_does_not_hold_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(featcache.heads.scorers, "QUERIES", 64)
    monkeypatch.setattr(featcache.heads.scorers, "STORED", 64)
    stored = float32(20_000, 4).astype(np.float16)
    scorer = Neighbours(stored, np.zeros(20_000, np.int64), 2, 3, np.zeros(4), np.ones(4))
    tracemalloc.start()
    try:
        scorer.logits(stored[:200])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000 * 64  # a column of all distances of one block of queries would be eight times that


# ---------------------------------------------------------------- on disk


@any_scorer
def test_from_tensors_returns_the_saved_scorer(make: Callable[[], Scorer]) -> None:
    from safetensors.numpy import load, save

    scorer = make()
    found = SCORERS[scorer.kind].from_tensors(load(save(scorer.tensors())))
    assert type(found) is type(scorer)
    x = float32(20, 5)
    np.testing.assert_array_equal(found.logits(x), scorer.logits(x))
    for name, part in scorer.tensors().items():
        again = found.tensors()[name]
        assert (again.dtype, again.shape) == (part.dtype, part.shape)
        np.testing.assert_array_equal(again, part)


@pytest.mark.parametrize("metric", METRICS)
def test_from_tensors_returns_the_metric(metric: str) -> None:
    assert Neighbours.from_tensors(neighbours(metric=metric).tensors()).metric == metric


def test_tensors_of_other_memory_layouts_are_saved() -> None:
    from safetensors.numpy import load, save

    weight = np.asfortranarray(float32(3, 5))
    found = Linear.from_tensors(load(save(Linear(weight, float32(6)[::2]).tensors())))
    np.testing.assert_array_equal(found.weight, weight)


def test_from_tensors_ignores_other_tensors() -> None:
    scorer = linear()
    found = Linear.from_tensors(scorer.tensors() | {"thresholds": np.full(3, np.nan)})
    np.testing.assert_array_equal(found.weight, scorer.weight)


def test_scorers_has_each_kind_by_its_name() -> None:
    assert list(SCORERS.values()) == [Linear, Mlp, Neighbours, Attentive]  # files have their places


@pytest.mark.parametrize(
    ("make", "part"),
    [(make, part) for make in ANY[:3] for part in make().tensors()],  # type: ignore[attr-defined]
)
class TestFromTensorsWithOneDamagedTensor:
    def refused(self, make: Callable[[], Scorer], part: str, value: np.ndarray | None, match: str) -> None:
        scorer = make()
        tensors = {name: kept.copy() for name, kept in scorer.tensors().items()}
        if value is None:
            del tensors[part]
        else:
            tensors[part] = value
        with pytest.raises(HeadError, match=match):
            type(scorer).from_tensors(tensors)

    def test_missing(self, make: Callable[[], Scorer], part: str) -> None:
        self.refused(make, part, None, f"{make().kind} head has no {part}; it has")

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8])
    def test_of_another_dtype(self, make: Callable[[], Scorer], part: str, dtype: type) -> None:
        value = make().tensors()[part]
        allowed = {value.dtype} | ({np.dtype("f2"), np.dtype("f4")} if part == "features" else set())
        if np.dtype(dtype) not in allowed:
            self.refused(make, part, value.astype(dtype), f"{part} is {np.dtype(dtype)}, not")

    @pytest.mark.parametrize("change", ["shorter", "longer", "wider", "flat", "deeper", "scalar", "empty"])
    def test_of_another_shape(self, make: Callable[[], Scorer], part: str, change: str) -> None:
        value = make().tensors()[part]
        changed = {
            "shorter": value[:-1],
            "longer": np.concatenate([value, value[:1]]),
            "wider": np.concatenate([value, value], axis=-1),
            "flat": value.reshape(-1) if value.ndim > 1 else value[:, None],
            "deeper": value[None],
            "scalar": value.reshape(-1)[0].reshape(()),
            "empty": value[:0],
        }[change]
        if (part, change) not in {("weight", "wider"), ("w1", "wider")}:  # that is a head of another width
            self.refused(make, part, changed, f"{make().kind} head")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_with_a_value_that_is_no_number(self, make: Callable[[], Scorer], part: str, bad: float) -> None:
        value = make().tensors()[part].copy()
        if value.dtype.kind == "f":
            value.reshape(-1)[-1] = bad
            self.refused(make, part, value, f"{part} holds NaN or infinite")


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        ("neighbours", 0, "0 neighbours of 40 rows"),
        ("neighbours", 41, "41 neighbours of 40 rows"),
        ("neighbours", -(1 << 63), "neighbours of 40 rows"),
        ("metric", 2, "a metric 2 that this version does not know"),
        ("metric", -1, "a metric -1 that this version does not know"),
        ("classes", 2, "labels that none of its 2 classes has"),
        ("classes", 0, "labels that none of its 0 classes has"),
    ],
)
def test_from_tensors_refuses_numbers_out_of_range(part: str, value: int, match: str) -> None:
    tensors = neighbours(labels=np.arange(40) % 3).tensors()
    with pytest.raises(HeadError, match=match):
        Neighbours.from_tensors(tensors | {part: np.array([value])})


def test_from_tensors_refuses_labels_out_of_range() -> None:
    tensors = neighbours().tensors()
    for bad in (-1, 3):
        with pytest.raises(HeadError, match="labels that none of its 3 classes has"):
            Neighbours.from_tensors(tensors | {"labels": np.full(40, bad)})
    tensors = neighbours(several=True).tensors()
    with pytest.raises(HeadError, match="labels that none of its 3 classes has"):
        Neighbours.from_tensors(tensors | {"labels": np.full((40, 3), 2, np.uint8)})
    with pytest.raises(HeadError, match=r"labels \[40, 3\] for 4 classes"):
        Neighbours.from_tensors(tensors | {"classes": np.array([4])})


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_from_tensors_refuses_a_scale_out_of_range(bad: float) -> None:
    with pytest.raises(HeadError, match="scale that is not above 0"):
        Neighbours.from_tensors(neighbours().tensors() | {"scale": np.array([1, 1, bad, 1, 1])})


def test_importing_scorers_imports_neither_torch_nor_scikit_learn() -> None:
    import subprocess
    import sys

    heavy = "{'torch', 'sklearn', 'scipy'}"
    code = f"import sys, featcache.heads.scorers; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
