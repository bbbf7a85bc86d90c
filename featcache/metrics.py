"""Metrics of class probabilities, from one confusion matrix; plain numpy, no heavy import."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassScore:
    """One row of the per-class table; 0 where a ratio has nothing to divide by."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """What a head does on one split.

    Attributes:
        confusion: int64 `[C, C]`, rows true, columns predicted.
    """

    accuracy: float
    macro_f1: float
    log_loss: float
    per_class: tuple[ClassScore, ...]
    confusion: np.ndarray

    @property
    def summary(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "log_loss": self.log_loss}


def score(probabilities: np.ndarray, labels: np.ndarray, label_names: tuple[str, ...]) -> Scores:
    """Scores of probabilities `[N, C]` against labels int `[N]`.

    Macro F1 is the mean over the classes that are in `labels` or were predicted, as in scikit-learn.
    """
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, len(label_names))
    per_class = tuple(_class_score(confusion, number, name) for number, name in enumerate(label_names))
    present = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    return Scores(
        accuracy=float(np.trace(confusion) / max(confusion.sum(), 1)),
        macro_f1=float(np.mean([c.f1 for c, here in zip(per_class, present, strict=True) if here])),
        log_loss=log_loss(probabilities, labels),
        per_class=per_class,
        confusion=confusion,
    )


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 `[C, C]`, rows true, columns predicted."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log probability of the true class, in nats; probabilities are held above 1e-15."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, 1e-15)).mean())


def _class_score(confusion: np.ndarray, number: int, name: str) -> ClassScore:
    hit = float(confusion[number, number])
    support, predicted = int(confusion[number].sum()), int(confusion[:, number].sum())
    return ClassScore(
        name,
        precision=hit / predicted if predicted else 0.0,
        recall=hit / support if support else 0.0,
        f1=2 * hit / (support + predicted) if support + predicted else 0.0,
        support=support,
    )
