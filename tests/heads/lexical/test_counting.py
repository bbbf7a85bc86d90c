"""Vocabularies and counts are exactly those of scikit-learn's CountVectorizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from featcache.heads.lexical import letters
from featcache.heads.lexical.counting import NgramCounter
from featcache.heads.lexical.letters import TOKENS, normalise, parts_of_texts
from featcache.heads.lexical.vocabulary import find_vocabulary

SIGNS = "好坏房间ab  \t\n\u3000\xa0\x1c\x00\x01Ａ０é_!。\ud83d\ude00😀\U00020000ﷺΣς\u0301Ｗ"
LINES = st.text(st.sampled_from(SIGNS), max_size=14)
KINDS = st.tuples(
    st.sampled_from(["char", "char_wb", "word"]), st.integers(1, 5), st.integers(0, 3)
)  # analyzer, shortest, how much longer the longest is


def peer(analyzer: str, shortest: int, more: int, **options: Any) -> CountVectorizer:
    return CountVectorizer(
        analyzer=analyzer,
        ngram_range=(shortest, shortest + more),
        preprocessor=normalise,
        dtype=np.float32,
        **({"token_pattern": TOKENS} if analyzer == "word" else {}),
        **options,
    )


@given(st.lists(LINES, max_size=9), st.lists(LINES, max_size=3), KINDS, st.integers(1, 12))
def test_the_vocabulary_and_all_counts_are_scikit_learns(
    texts: list[str], others: list[str], kind: tuple[str, int, int], most: int
) -> None:
    analyzer, shortest, more = kind
    wanted = peer(*kind, min_df=2, max_features=most)
    try:
        matrix = wanted.fit_transform(texts).toarray()
        names = tuple(wanted.get_feature_names_out())
    except ValueError:  # no n-gram is in two texts
        matrix, names = np.zeros((len(texts), 0)), ()
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(letters, "AT_ONCE", 30)  # several parts
        found, counts = find_vocabulary(texts, analyzer, (shortest, shortest + more), most, done.append)
    assert found == names
    np.testing.assert_array_equal(counts.toarray(), matrix)
    assert counts.dtype == np.float32 and sum(done) == len(texts)
    again = NgramCounter(found, analyzer)
    np.testing.assert_array_equal(again(texts).toarray(), matrix)
    if names:
        others.append("")
        np.testing.assert_array_equal(again(others).toarray(), wanted.transform(others).toarray())


@given(st.lists(LINES, min_size=1, max_size=3), KINDS)
def test_some_ngrams_without_their_beginnings_are_counted(
    texts: list[str], kind: tuple[str, int, int]
) -> None:
    """A vocabulary that is cut may have `abc` and not `ab`."""
    grams = sorted(set().union(*map(peer(*kind).build_analyzer(), texts)))[::2]
    if not grams:
        return
    wanted = peer(*kind, vocabulary=grams)
    found = NgramCounter(grams, kind[0])(texts)
    np.testing.assert_array_equal(found.toarray(), wanted.transform(texts).toarray())


@pytest.mark.parametrize("most", [40, 200, 1000])
@pytest.mark.parametrize("analyzer", ["char", "char_wb", "word"])
def test_of_equally_frequent_ngrams_those_are_kept_that_scikit_learn_keeps(analyzer: str, most: int) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd好坏 ,"), 40)) for _ in range(100)]
    wanted = peer(analyzer, 1, 2, min_df=2, max_features=most)
    matrix = wanted.fit_transform(texts)
    found, counts = find_vocabulary(texts, analyzer, (1, 3), most, lambda more: None)
    assert found == tuple(wanted.get_feature_names_out())
    assert (counts != matrix).nnz == 0


@pytest.mark.parametrize("texts", [[], [""], ["", "  "], ["ab", "cd"]])
@pytest.mark.parametrize("analyzer", ["char", "char_wb", "word"])
def test_texts_without_common_ngrams_have_an_empty_vocabulary(analyzer: str, texts: list[str]) -> None:
    found, counts = find_vocabulary(texts, analyzer, (2, 3), 10, lambda more: None)
    assert found == () and counts.shape == (len(texts), 0)
    assert NgramCounter((), analyzer)(texts).shape == (len(texts), 0)


@pytest.mark.parametrize("grams", [["b", "a"], ["a", "a"], ["ab", "b", "ab"]])
@pytest.mark.parametrize("analyzer", ["char", "word"])
def test_a_vocabulary_out_of_order_is_refused(analyzer: str, grams: list[str]) -> None:
    with pytest.raises(ValueError, match="out of order"):
        NgramCounter(grams, analyzer)


@given(st.lists(LINES, max_size=9))
def test_parts_of_texts_have_every_text_once(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(letters, "AT_ONCE", 20)
        parts = [texts[rows] for rows in parts_of_texts(texts)]
    assert [text for part in parts for text in part] == texts
    assert all(part and sum(map(len, part[:-1])) < 20 for part in parts)
