"""N-grams are weighed as scikit-learn's TfidfVectorizer weighs them, on disk and in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from sklearn.feature_extraction.text import TfidfVectorizer

from featcache.errors import HeadError
from featcache.heads.lexical.letters import normalise
from featcache.heads.lexical.ngrams import HASHED, Ngrams, NgramSettings, joined_texts

CHINESE = ["房间很干净", "房间不干净，很差", "电池很好", "Ｂｏｏｋ 很好 book", ""]
ENGLISH = ["a good room", "a bad room, very bad", "good battery", "no battery"]
TEXTS = st.lists(st.text(st.sampled_from("好坏房间ab \u3000Ａ\n0é"), max_size=12), min_size=2, max_size=8)


@given(TEXTS, st.sampled_from(["char", "char_wb"]))
@settings(max_examples=30)
def test_ngrams_are_weighed_as_scikit_learn_weighs_them(texts: list[str], analyzer: str) -> None:
    own = NgramSettings(analyzer, 1, 3)
    peer = TfidfVectorizer(
        analyzer=analyzer, ngram_range=(1, 3), min_df=2, sublinear_tf=True, preprocessor=normalise
    )
    try:
        wanted = peer.fit_transform(texts).toarray()
    except ValueError:  # no n-gram is in two of them
        with pytest.raises(HeadError, match="no n-gram is in two"):
            Ngrams.fit(texts, own)
        return
    ngrams, found = Ngrams.fit(texts, own)
    assert ngrams.vocabulary == tuple(peer.get_feature_names_out())
    np.testing.assert_allclose(found.toarray(), wanted, atol=1e-6)
    np.testing.assert_allclose(ngrams(texts).toarray(), wanted, atol=1e-6)
    others = ["好 unknown", "", "房间"]
    np.testing.assert_allclose(ngrams(others).toarray(), peer.transform(others).toarray(), atol=1e-6)


@given(TEXTS)
@settings(max_examples=30)
def test_ngrams_are_the_same_after_they_were_on_disk(texts: list[str]) -> None:
    ngrams, _ = Ngrams.fit([*texts, "ab", "ab\x00\ud83d\ude00"], NgramSettings("char", 1, 2))
    again = Ngrams.from_tensors(ngrams.settings, load(save(ngrams.tensors())))
    assert (again.vocabulary, again.settings) == (ngrams.vocabulary, ngrams.settings)
    np.testing.assert_array_equal(again(texts).toarray(), ngrams(texts).toarray())


def test_which_ngrams_depends_on_the_script() -> None:
    assert NgramSettings.of(CHINESE) == NgramSettings("char", 1, 3)
    assert NgramSettings.of(ENGLISH) == NgramSettings("char_wb", 1, 5)
    assert NgramSettings.of(["", "123"]).analyzer == "char_wb"
    assert NgramSettings.of(["a"] * 200_001).hashed == HASHED


def test_hashed_ngrams_say_nearly_what_listed_ones_do() -> None:
    listed, x = Ngrams.fit(ENGLISH)
    hashed, other = Ngrams.fit(ENGLISH, replace(listed.settings, hashed=1 << 18))
    assert hashed.count == 1 << 18 and hashed.vocabulary == ()
    assert other.nnz > x.nnz  # n-grams of a single text count, too
    again = Ngrams.from_tensors(hashed.settings, load(save(hashed.tensors())))
    np.testing.assert_array_equal(again(ENGLISH).data, other.data)
    columns = hashed.columns_of("good")
    assert set(columns.values()) <= set(hashed(["good"]).indices)


def test_columns_of_a_text_are_those_of_its_features() -> None:
    ngrams, _ = Ngrams.fit(CHINESE)
    columns = ngrams.columns_of("房间很ＢＯＯＫ unknown")
    assert set(columns.values()) == set(ngrams(["房间很ＢＯＯＫ unknown"]).indices)
    assert {gram: ngrams.vocabulary[place] for gram, place in columns.items()} == {g: g for g in columns}


def test_texts_of_a_pair_are_counted_together() -> None:
    assert joined_texts(["a", "b"], ["c", "d"]) == ["a\nc", "b\nd"]
    assert joined_texts(["a"], None) == ["a"]


@pytest.mark.parametrize(
    "change",
    [
        {"ngrams.idf": None},
        {"ngrams.idf": np.ones(3, np.float32)},
        {"ngrams.idf": np.full(2, np.nan, np.float32)},
        {"ngrams.ends": np.array([2, 1], np.int64)},
        {"ngrams.ends": np.array([1, 99], np.int64)},
        {"ngrams.text": np.array([0xFF, 0xFE], np.uint8)},
    ],
)
def test_ngrams_that_do_not_fit_are_refused(change: dict[str, np.ndarray | None]) -> None:
    own = NgramSettings("char", 1, 1)
    ngrams, _ = Ngrams.fit(["ab", "ab"], own)
    tensors = {name: part for name, part in (ngrams.tensors() | change).items() if part is not None}
    with pytest.raises(HeadError, match="n-grams"):
        Ngrams.from_tensors(own, tensors)


@pytest.mark.parametrize(
    "values", [("word2", 1, 3), ("char", 0, 3), ("char", 3, 1), ("char", 1, 99), ("char", 1, 3, 0)]
)
def test_settings_out_of_range_are_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="not known"):
        NgramSettings(*values)  # type: ignore[arg-type]
