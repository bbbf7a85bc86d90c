"""Several linear heads of the same features averaged into one, as validation rows choose them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featcache.evaluation.calibration import fit_temperature
from featcache.evaluation.metrics import score
from featcache.heads.features import NEVER, LabelledFeatures
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import Linear


def blend_linear(
    scorers: Sequence[Linear], validation: LabelledFeatures, most: int
) -> tuple[Linear, tuple[int, ...]]:
    """The mean of the logits of some heads, which is one linear head again, and the numbers of the heads.

    Heads are taken one after another, the one whose mean with those before has the lowest log loss on
    validation, as long as that falls; a head may be taken more than once (Caruana et al., Ensemble selection
    from libraries of models, ICML 2004). Each head's logits are divided by its temperature before, so that a
    head that is too sure does not outweigh the others.

    Args:
        scorers: of the same features, the best first.
        validation: rows that none was trained on.
        most: how many heads are taken, repeated ones included.
    """
    y = validation.y
    names, several = tuple(map(str, range(scorers[0].classes))), y.ndim == 2
    scaled: list[tuple[Linear, np.ndarray]] = []
    for scorer in scorers:
        logits = scorer.logits(validation.x)
        factor = 1 / fit_temperature(np.clip(logits, -NEVER, NEVER), y)
        fixed = np.abs(scorer.bias) >= NEVER  # of a label that train says nothing about: as it is
        factors = np.where(fixed, 1.0, factor).astype(np.float32)
        scaled.append((Linear(scorer.weight * factors[:, None], scorer.bias * factors), logits * factors))

    def loss(total: np.ndarray, count: int) -> float:
        return score(probabilities_of(total / count, 1.0, multi_label=several), y, names).log_loss

    chosen: list[int] = []
    total, lowest = np.zeros_like(scaled[0][1]), np.inf
    while len(chosen) < most:
        losses = [loss(total + logits, len(chosen) + 1) for _, logits in scaled]
        best = int(np.argmin(losses))
        if losses[best] >= lowest:
            break
        lowest, total = losses[best], total + scaled[best][1]
        chosen.append(best)
    parts = [scaled[number][0] for number in chosen]
    weight, bias = (
        np.asarray(np.stack(of_parts).mean(axis=0, dtype=np.float64), np.float32)
        for of_parts in ([part.weight for part in parts], [part.bias for part in parts])
    )
    return Linear(weight, bias), tuple(chosen)
