"""Many texts: their n-grams are stored, and read some at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random
from sklearn.linear_model import LogisticRegression

from featcache.errors import HeadError
from featcache.heads.features import LabelledFeatures
from featcache.heads.lexical import letters, ngrams, stored_rows, streamed_fit
from featcache.heads.lexical.fit import fit_lexical
from featcache.heads.lexical.ngrams import Ngrams, NgramSettings
from featcache.heads.lexical.rows import WordRows
from featcache.heads.lexical.stored_rows import StoredRows, parts_of
from featcache.heads.lexical.streamed_fit import fit_streamed
from featcache.settings import HeadSettings

SPARSE = csr_matrix(random(300, 50, 0.1, random_state=0, dtype=np.float32))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few texts are many."""
    monkeypatch.setattr(stored_rows, "AT_ONCE", 64)
    monkeypatch.setattr(letters, "AT_ONCE", 640)
    monkeypatch.setattr(ngrams, "MOST_COUNTED", 100)


def stored(rows: csr_matrix = SPARSE) -> StoredRows:
    return StoredRows((rows[first : first + 70] for first in range(0, rows.shape[0], 70)), rows.shape[1])


@pytest.mark.parametrize(
    "key", [slice(None), slice(3, 3), slice(60, 130), [5, 290, 5, 64], np.arange(300) % 7 == 0, []]
)
@pytest.mark.usefixtures("small")
def test_stored_rows_read_like_the_matrix(key: Any) -> None:
    key = np.asarray(key, int) if isinstance(key, list) else key
    np.testing.assert_array_equal(stored()[key].toarray(), SPARSE[np.arange(300)[key]].toarray())


@pytest.mark.usefixtures("small")
def test_stored_rows_change_and_come_in_parts() -> None:
    own = stored()
    own.change(lambda part: part.data * 2)
    parts = list(parts_of(own))
    assert [rows.stop - rows.start for rows, _ in parts] == [64, 64, 64, 64, 44]
    np.testing.assert_allclose(np.vstack([part.toarray() for _, part in parts]), 2 * SPARSE.toarray())


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, content: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored_rows.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(HeadError, match="No space left on device") as caught:
        stored()
    assert "TMPDIR" in str(caught.value.hint)


@pytest.mark.usefixtures("small")
def test_the_streamed_fit_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_fit, "ENOUGH", 1e-13)
    rng = np.random.default_rng(0)
    noise = rng.gumbel(size=(300, 3))
    y = (SPARSE @ rng.normal(size=(50, 3)) * 2 + noise).argmax(axis=1)
    ratios = rng.uniform(0.5, 2, size=(3, 50)).astype(np.float32)
    weights = rng.uniform(0.5, 2, size=300)
    chosen = np.stack([y == label for label in range(3)], axis=1)
    found, bias = fit_streamed(stored(), chosen, ratios, np.repeat(weights[:, None], 3, axis=1), 3.0)
    for label in range(3):
        model = LogisticRegression(C=3.0, tol=1e-8, max_iter=10_000)
        model.fit(SPARSE.multiply(ratios[label]).tocsr(), chosen[:, label], sample_weight=weights)
        np.testing.assert_allclose(found[label], model.coef_[0] * ratios[label], atol=5e-3)
        assert bias[label] == pytest.approx(model.intercept_[0], abs=5e-3)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_a_head_of_many_texts_answers_as_that_of_few(
    classes: int, class_weight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    y = rng.choice(classes, size=400, p=[0.6, 0.4] if classes == 2 else [0.5, 0.3, 0.2])
    letters = ["abx", "bcx", "cax"]
    texts = ["".join(rng.choice(list(letters[label] + "xyz"), size=12)) for label in y]
    settings = NgramSettings("char", 1, 2, hashed=1 << 10)
    head = HeadSettings(class_weight=class_weight)

    def logits() -> np.ndarray:
        made, train = Ngrams.fit(texts[:300], settings)
        held_out = LabelledFeatures(WordRows(made, made(texts[300:])).as_array(), y[300:])
        known = LabelledFeatures(WordRows(made, train).as_array(), y[:300])
        fit = fit_lexical(known, held_out, classes, head)
        return fit.best.logits(held_out.x)

    few = logits()
    monkeypatch.setattr(stored_rows, "AT_ONCE", 64)
    monkeypatch.setattr(ngrams, "MOST_COUNTED", 99)
    many = logits()
    assert (few.argmax(axis=1) == many.argmax(axis=1)).mean() > 0.95
    np.testing.assert_allclose(few, many, atol=0.6)
