"""The shares of views in a head's logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.rows import WordRows
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.scorers import Linear, Mlp
from featcache.heads.view_shares import view_shares
from featcache.system.sharded_array import join_columns

VIEW = "-3/mean,last/mean"


def matrices(seed: int, rows: int = 50) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(rows, width)).astype(np.float16) for width in (3, 4)]


@given(st.integers(0, 99), st.integers(2, 4))
@settings(max_examples=20)
def test_shares_add_up_to_one(seed: int, classes: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(classes, 7)).astype(np.float32)
    found = view_shares(Linear(weight, np.ones(classes, np.float32)), join_columns(matrices(seed)), VIEW)
    assert found is not None and list(found) == VIEW.split(",")
    assert sum(found.values()) == pytest.approx(1)


def test_a_view_without_weights_has_no_share() -> None:
    weight = np.zeros((2, 7), np.float32)
    weight[1, :3] = 1
    found = view_shares(Linear(weight, np.zeros(2, np.float32)), join_columns(matrices(0)), VIEW)
    assert found == {"-3/mean": pytest.approx(1), "last/mean": pytest.approx(0)}


def test_words_have_a_share_beside_features() -> None:
    texts = ["很好 房间", "太差 房间", "很好 书", "太差 书"] * 5
    ngrams, words = Ngrams.fit(texts)
    weight = np.random.default_rng(1).normal(size=(2, ngrams.count)).astype(np.float32)
    dense = Linear(np.zeros((2, 7), np.float32), np.zeros(2, np.float32))
    scorer = WordScorer(weight, np.zeros(2, np.float32), dense, 0.5)
    x = WordRows(ngrams, words, join_columns(matrices(2, len(texts))))
    found = view_shares(scorer, x, f"{VIEW},lexical")
    assert found == {"-3/mean": pytest.approx(0), "last/mean": pytest.approx(0), "lexical": pytest.approx(1)}


def test_only_linear_heads_of_several_views_have_shares() -> None:
    whole = join_columns(matrices(0))
    mlp = Mlp(*(np.ones(shape, np.float32) for shape in ((5, 7), 5, (2, 5), 2)))
    assert view_shares(mlp, whole, VIEW) is None
    assert (
        view_shares(Linear(np.ones((2, 3), np.float32), np.ones(2, np.float32)), matrices(0)[0], "a") is None
    )
    nothing = Linear(np.zeros((2, 7), np.float32), np.zeros(2, np.float32))
    assert view_shares(nothing, whole, VIEW) is None
