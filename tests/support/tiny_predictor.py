"""A predictor of a tiny backbone with a made-up head: nothing is trained."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.heads.head import Head
from featcache.heads.scorers import Linear
from featcache.prediction.predictor import Prediction, Predictor
from tests.support.stock import encoder, load

NAMES = ("差评, bad", "neutral 中", "好评/good")
VIEW = "last/mean"


def tiny_predictor(
    folder: Path,
    *,
    names: Sequence[str] = NAMES,
    several: bool = False,
    batch_tokens: int = 512,
    **changes: Any,
) -> Predictor:
    """Three labels or others; `several`: a multi-label head with thresholds that say zero or more of them."""
    made = encoder(load(folder), VIEW, batch_tokens=batch_tokens, **changes)
    draw = np.random.default_rng(5)
    scorer = Linear(
        draw.normal(0, 0.5, (len(names), 32)).astype(np.float32), np.zeros(len(names), np.float32)
    )
    thresholds = np.linspace(0.45, 0.55, len(names)) if several else None
    return Predictor(made, Head(scorer, tuple(names), VIEW, made.document, "linear", thresholds=thresholds))


class HeldPredictor:
    """A predictor that waits for `go_on`, and notes the number of texts and whether they are pairs."""

    def __init__(self, predictor: Any) -> None:
        self.predictor, self.calls = predictor, []
        self.inside, self.go_on = threading.Event(), threading.Event()

    def predict_any(self, texts: list[str], pairs: Any = None) -> list[Prediction]:
        """Wait for `go_on`, then predict."""
        self.inside.set()
        assert self.go_on.wait(60)
        self.calls.append((len(texts), pairs is not None))
        found: list[Prediction] = self.predictor.predict_any(texts, pairs)
        return found
