"""The head that is trained again after answers: a logistic regression on the labelled texts of a pool."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from featcache.evaluation.calibration import fit_temperature
from featcache.heads.logistic import exact
from featcache.heads.probabilities import probabilities_of

C = 0.01  # inverse penalty; of the values tried in docs/labelling.md the best with few labels
LEAST_CALIBRATING = 20  # texts from which on probabilities are calibrated
TOLERANCE = 1e-3  # of the gradient: which texts come next does not depend on the third digit


@dataclass(frozen=True, eq=False)
class LabelHead:
    """Weights float32 `[C, D]`, biases `[C]` and temperature, for standardised features.

    Attributes:
        solution: the same weights as the solver found them.
    """

    weight: np.ndarray
    bias: np.ndarray
    multi_label: bool
    solution: exact.Solution
    temperature: float = 1.0

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, classes: int, before: LabelHead | None = None) -> Self | None:
        """Fit on labelled texts; None while they hold a single class, and there is nothing to learn.

        Args:
            x: standardised features `[M, D]`.
            y: int `[M]`, or multi-hot uint8 `[M, classes]`.
            before: a head of most of these texts, from which the search begins: it then takes a third of
                the time.
        """
        if not len(y) or not _differ(y):
            return None
        if before is not None and len(before.bias) == classes:
            found = exact.refine(x, y, classes, before.solution, tolerance=TOLERANCE)
        else:
            found = exact.fit(x, y, classes, C, tolerance=TOLERANCE)
        return cls(found.weight.astype(np.float32), found.bias.astype(np.float32), y.ndim == 2, found)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """float64 `[N, C]`; of a multi-label head each by itself."""
        return probabilities_of(self._logits(x), self.temperature, multi_label=self.multi_label)

    def calibrated(self, x: np.ndarray, y: np.ndarray) -> Self:
        """With the temperature that suits texts it did not learn from; as it is while these are too few.

        The most probable text counts once more, with another label: twenty texts that are all right do not
        show more than 95 %.

        Args:
            x: standardised features `[V, D]`.
            y: int `[V]`.
        """
        if self.multi_label or len(y) < LEAST_CALIBRATING:
            return self
        logits = self._logits(x)
        surest = int(self.probabilities(x).max(axis=1).argmax())
        wrong = int(np.argsort(-logits[surest], kind="stable")[1])
        found = fit_temperature(np.vstack([logits, logits[surest]]), np.append(y, wrong))
        return replace(self, temperature=found)

    def _logits(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ self.weight.T + self.bias)


def _differ(y: np.ndarray) -> bool:
    if y.ndim == 1:
        return bool((y != y[0]).any())
    share = y.mean(axis=0)
    return bool(((share > 0) & (share < 1)).any())
