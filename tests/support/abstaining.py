"""Heads that may give no answer, and features for them, without a backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from featcache.cache.catalog import Features
from featcache.heads.abstention.abstention import Abstention, JudgedRows
from featcache.heads.abstention.scope import fit_distance
from featcache.heads.features import LabelledFeatures
from featcache.heads.head import Head
from featcache.prediction.predictor import Predictor
from featcache.settings import AbstentionSettings
from tests.support.documents import encoder_document
from tests.support.saved_runs import hashes

HALF = AbstentionSettings(coverage=0.5, confidence=0.9)


def features_of(split: str, rows: LabelledFeatures, classes: int) -> Features:
    """The rows as `Features` of a cache; every row is another text."""
    names = tuple(f"class {number}" for number in range(classes))
    return Features(
        split=split, view="last/mean", x=rows.x, y=rows.y, label_names=names,
        row_hash=hashes(f"{split} {number}" for number in range(len(rows.y))),
        encoder=encoder_document(), fingerprint="0" * 64, path=Path("none.h5"),
    )  # fmt: skip


def judged(rows: int, seed: int = 0) -> JudgedRows:
    """Rows of two classes whose probability is right as often as it says, at distances around 0.5."""
    draw = np.random.default_rng(seed)
    probability = draw.uniform(0.5, 1, rows)
    return JudgedRows(probability, draw.uniform(0, 1, rows), draw.random(rows) > probability)


def abstaining(head: Head, x: np.ndarray, asked: AbstentionSettings = HALF, kind: str = "neighbours") -> Head:
    """`head` with an abstention; train and validation rows are the features `[N, D]`, all of them right."""
    distance = fit_distance(kind, LabelledFeatures(x, np.arange(len(x)) % 2), 2, 0)
    found = JudgedRows(head.predict_proba(x).max(axis=1), distance.distances(x), np.zeros(len(x), bool))
    made = Abstention(asked, distance, {kind: 0.75}, choice=found, guarantee=found)
    return replace(head, abstention=made.at(asked))


def abstaining_predictor(predictor: Predictor, texts: list[str]) -> Predictor:
    """A predictor that answers about half of such texts, of the same encoder and head."""
    x = predictor.encoder(texts).views[predictor.head.view]
    head = abstaining(predictor.head, x)
    assert head.abstention
    # Threshold and limit are the score and the distance of a text; other batches may round it to either side.
    made = head.abstention
    wider = replace(made.choice, distance=made.choice.distance + 1e-4)
    made = replace(made, choice=wider, threshold=made.threshold - 1e-5)
    return Predictor(predictor.encoder, replace(head, abstention=made))
