"""What goes into a training above the cut, what it reports, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from featcache.backbone.packing import StateBatch, TokenBatch
from featcache.heads.fit import Epoch


@dataclass(frozen=True)
class TrainingStep:
    """One step of the training, for the caller to draw.

    Attributes:
        step, steps: of all epochs.
        loss: of this step's texts.
        line: the epoch's line where the step was its last.
        text: a message instead of a step.
    """

    step: int
    steps: int
    loss: float = float("nan")
    line: Epoch | None = None
    text: str = ""


class TrainingTexts(Protocol):
    """Texts of a split as the input of the trained part: states at the cut, or tokens."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 `[N]`."""

    def batch(self, rows: np.ndarray) -> StateBatch | TokenBatch:
        """Some texts, end to end in that order."""


@dataclass(frozen=True)
class SomeTexts:
    """Some of the texts of a split; `rows` are their numbers, int64 `[M]`."""

    texts: TrainingTexts
    rows: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray(self.texts.lengths[self.rows])

    def batch(self, rows: np.ndarray) -> StateBatch | TokenBatch:
        return self.texts.batch(self.rows[rows])


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their labels: int64 `[N]`, or multi-hot uint8 `[N, C]`."""

    texts: TrainingTexts
    labels: np.ndarray


@dataclass(frozen=True)
class TuningData:
    """What is trained on and chosen by; `classes` is C."""

    train: LabelledTexts
    validation: LabelledTexts
    classes: int


@dataclass
class TrainedWeights:
    """The trained part and the head at one moment, on the CPU.

    Attributes:
        part: by the parameter's name in the model, in the dtype it computes with.
        head: float32 `weight` `[C, H]` and `bias` `[C]`.
    """

    part: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]


@dataclass
class TrainingState:
    """How far the training is, all of it JSON-able; `loss` and `right` are sums over the epoch so far."""

    step: int = 0
    loss: float = 0.0
    right: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    best_epoch: int = 0
    history: list[Epoch] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Tuned:
    """What `Tuner.run` returns.

    Attributes:
        best, last: the weights after the best epoch by validation, and at the end.
        stopped: why the training ended early; empty where it did not.
    """

    best: TrainedWeights
    last: TrainedWeights
    state: TrainingState
    batch_tokens: int
    stopped: str = ""
