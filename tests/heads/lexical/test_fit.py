"""Heads of words: what they learn, alone and beside features."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from featcache.errors import FeatcacheError, HeadError, UsageError
from featcache.heads.features import LabelledFeatures
from featcache.heads.lexical.fit import blend, fit_beside, fit_lexical
from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.rows import WordRows
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.registry import KINDS
from featcache.runs.words import SplitTexts
from featcache.settings import HeadSettings

WORDS = (("干净", "喜欢", "便宜"), ("失望", "太差", "退货"), ("一般", "还行", "凑合"))


def rows(count: int, classes: int, seed: int, *, several: bool = False) -> tuple[list[str], np.ndarray]:
    """Texts with a word of their class among others, and their labels."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, classes, count)
    fillers = ["房间", "电池", "服务", "位置", "早餐"]
    texts = [
        "".join([*draw.choice(fillers, 4), draw.choice(WORDS[label]), *draw.choice(fillers, 3)])
        for label in y
    ]
    if not several:
        return texts, y
    hot = np.zeros((count, classes), np.uint8)
    hot[np.arange(count), y] = 1
    return texts, hot


def made(classes: int, *, several: bool = False, dense: bool = False) -> list[LabelledFeatures]:
    """Train and validation; `dense` features say a little of the class."""
    (train, y), (held_out, z) = (rows(n, classes, n, several=several) for n in (120, 60))
    ngrams, words = Ngrams.fit(train)
    found = []
    for words_of, labels in ((words, y), (ngrams(held_out), z)):
        classes_of = labels.argmax(1) if several else labels
        noise = np.random.default_rng(len(labels)).normal(size=(len(labels), 4))
        x = (noise + 0.8 * np.eye(4)[classes_of]).astype(np.float16) if dense else None
        found.append(LabelledFeatures(WordRows(ngrams, words_of, x).as_array(), labels))
    return found


def accuracy(scorer: WordScorer, part: LabelledFeatures) -> float:
    logits = scorer.logits(part.x)
    if part.y.ndim == 2:
        return float(((logits > 0) == part.y).all(1).mean())
    return float((logits.argmax(1) == part.y).mean())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("several", [False, True])
def test_words_alone_tell_classes_apart(classes: int, several: bool) -> None:
    train, validation = made(classes, several=several)
    fit = fit_lexical(train, validation, classes, HeadSettings())
    assert isinstance(fit.best, WordScorer)
    assert accuracy(fit.best, validation) > 0.95
    assert fit.about is not None and fit.about["ngrams"] == train.x.shape[1]
    again = fit_lexical(train, validation, classes, HeadSettings(class_weight="balanced"))
    assert accuracy(again.best, validation) > 0.95  # type: ignore[arg-type]


def test_a_class_that_train_does_not_have_is_never_predicted() -> None:
    train, validation = made(3)
    fit = fit_lexical(train, validation, 4, HeadSettings())
    assert fit.best.logits(validation.x)[:, 3].max() < -1e3


def test_a_single_class_is_refused() -> None:
    train, validation = made(2)
    with pytest.raises(HeadError, match="single class"):
        fit_lexical(train._replace(y=np.zeros_like(train.y)), validation, 2, HeadSettings())


@pytest.mark.parametrize("kind", ["exact", "linear", "mlp", "neighbours", "logistic"])
def test_every_head_can_have_words_beside_it(kind: str) -> None:
    train, validation = made(3, dense=True)
    fit = fit_beside(KINDS[kind].fit, train, validation, 3, HeadSettings(epochs=3), seed=0)
    assert isinstance(fit.best, WordScorer)
    alone = KINDS[kind].fit(
        train._replace(x=train.x.dense), validation._replace(x=validation.x.dense), 3,  # type: ignore[attr-defined]
        HeadSettings(epochs=3), seed=0,
    )  # fmt: skip
    own = (alone.best.logits(validation.x.dense).argmax(1) == validation.y).mean()  # type: ignore[attr-defined]
    assert accuracy(fit.best, validation) > max(own, 0.9)
    again = WordScorer.from_tensors(load(save(fit.best.tensors())))
    np.testing.assert_array_equal(again.logits(validation.x), fit.best.logits(validation.x))
    assert again.parameters == fit.best.parameters


def test_words_alone_are_for_the_lexical_head() -> None:
    train, validation = made(2)
    with pytest.raises(UsageError, match="--head lexical"):
        fit_beside(KINDS["exact"].fit, train, validation, 2, HeadSettings(), seed=0)
    dense = LabelledFeatures(np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]))
    with pytest.raises(UsageError, match="--view lexical"):
        fit_lexical(dense, dense, 2, HeadSettings())


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=20)
def test_a_blend_is_no_worse_than_either_part(seed: int, several: bool) -> None:
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, 200)
    one, two = (draw.normal(size=(200, 3)) + scale * np.eye(3)[y] for scale in draw.uniform(0.2, 3, 2))
    labels = np.eye(3, dtype=np.uint8)[y] if several else y
    a, b = blend(one, two, labels)

    def loss(logits: np.ndarray) -> float:
        if several:
            return float(np.logaddexp(0, (1 - 2.0 * labels) * logits).mean())
        return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(200), y]).mean())

    assert a > 0 and b > 0
    assert loss(a * one + b * two) <= min(loss(one), loss(two)) + 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"weight": np.zeros((2, 2), np.float32)},
        {"dense": np.array([77], np.int64)},
        {"dense.bias": np.zeros(5, np.float32), "dense.weight": np.zeros((5, 4), np.float32)},
        {"share": np.array([np.nan], np.float32)},
    ],
)  # fmt: skip
def test_a_scorer_that_does_not_fit_is_refused(change: dict[str, np.ndarray]) -> None:
    train, validation = made(3, dense=True)
    solve = partial(fit_beside, KINDS["exact"].fit)
    tensors = solve(train, validation, 3, HeadSettings(), seed=0).best.tensors()
    with pytest.raises(FeatcacheError):
        WordScorer.from_tensors(tensors | change)


def english(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Labels that two words side by side tell, and no letters within words do."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, count)
    pairs = (("not good", "was bad"), ("was good", "not bad"))
    texts = [f"{draw.choice(['room', 'staff', 'food'])} {draw.choice(pairs[label])} today" for label in y]
    return texts, y


def test_validation_chooses_the_kind_of_ngrams_and_fits_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, y), (held_out, z) = english(200, 0), english(100, 1)
    letters, words = SplitTexts({"train": train, "validation": held_out}).rows()["train"].kinds
    assert (letters.ngrams.settings.analyzer, words.ngrams.settings.analyzer) == ("char_wb", "word")
    rows = SplitTexts({"train": train, "validation": held_out}).rows()
    parts = [
        LabelledFeatures(rows[name].as_array(), labels) for name, labels in (("train", y), ("validation", z))
    ]
    fit = fit_lexical(*parts, 2, HeadSettings())
    assert fit.ngrams.settings.analyzer == "word"
    read = rows["validation"].read_by(fit.ngrams)
    assert read is not None
    assert accuracy(fit.best, LabelledFeatures(read.as_array(), z)) == 1.0  # type: ignore[arg-type]
    assert fit.seconds_before == 0
    monkeypatch.setattr(
        "featcache.heads.lexical.fit._one_against_rest", lambda *_: pytest.fail("fitted again")
    )
    again = fit_lexical(*parts, 2, HeadSettings())
    assert again.best is fit.best and again.seconds_before > 0
    monkeypatch.undo()
    other = fit_lexical(parts[0], parts[1]._replace(y=1 - z), 2, HeadSettings())
    assert other.best is not fit.best  # other labels, another fit


def test_words_beside_features_are_of_the_kind_that_is_better_beside_them() -> None:
    (train, y), (held_out, z) = english(200, 0), english(100, 1)
    rows = SplitTexts({"train": train, "validation": held_out}).rows()
    noise = np.random.default_rng(0)
    parts = [
        LabelledFeatures(replace(rows[name], dense=noise.normal(size=(len(labels), 3))).as_array(), labels)
        for name, labels in (("train", y), ("validation", z))
    ]
    fit = fit_beside(KINDS["ridge"].fit, *parts, 2, HeadSettings(), seed=0)
    assert fit.ngrams.settings.analyzer == "word" and fit.best.width == 3 + fit.ngrams.count
