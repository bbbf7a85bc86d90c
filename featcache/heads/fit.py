"""What the solvers share: their settings, the learning rate, the training history, the result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from featcache.errors import HeadError, UsageError
from featcache.heads.scorers import Scorer
from featcache.option import Option, coerce
from featcache.settings import HeadSettings, options

W = TypeVar("W")  # weights


@dataclass(frozen=True)
class Epoch:
    """One line of the training history.

    Losses are mean cross-entropies in nats; accuracies are shares of rows. The linear head's train figures
    are those of the epoch's batches, each before its own update; all others are taken after the epoch. Of
    numbers the loss is the mean squared error in units of the variance of the train labels, the accuracy
    1 minus that: the share of the variance that is explained.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True)
class Fit:
    """What a solver returns.

    Attributes:
        best: after the epoch with the highest validation accuracy (then the lowest loss).
        last: after the last epoch.
        history: one entry an epoch; empty for solvers without epochs.
        best_epoch: 1-based; 0 for solvers without epochs.
        about: further results of the solver, JSON-able: a chosen penalty, the norm of a gradient.
        ngrams: of several kinds the `Ngrams` that a head of words reads; None for other heads.
        seconds_before: of work that an earlier fit had done already.
    """

    best: Scorer
    last: Scorer
    history: tuple[Epoch, ...] = ()
    best_epoch: int = 0
    about: dict[str, Any] | None = None
    ngrams: Any = None
    seconds_before: float = 0.0


@dataclass(frozen=True)
class Member:
    """The settings of one head of a stack.

    Attributes:
        view: key of its features.
        lr: learning rate of AdamW at its highest.
        weight_decay: decoupled, on weights and bias.
        seed: of its first weights, uniform in +-1/sqrt(D) as `torch.nn.Linear` has them; None: zeros.
        label_smoothing: share of the target spread evenly over the classes (arXiv:1512.00567).
        class_weight: `none`, or `balanced`: N / (C * rows of the class), as in scikit-learn; or a weight for
            each class.
    """

    view: str
    lr: float = 1e-3
    weight_decay: float = 0.01
    seed: int | None = 0
    label_smoothing: float = 0.0
    class_weight: str | tuple[float, ...] = "none"

    @classmethod
    def of(cls, settings: HeadSettings, view: str) -> Member:
        """A head that starts at zero: the loss is convex, and random weights would stay where no row corrects
        them."""
        return cls(
            view=view,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            seed=None,
            label_smoothing=settings.label_smoothing,
            class_weight=settings.class_weight,
        )


@dataclass
class TrainingHistory(Generic[W]):
    """The epochs of one head, and its weights when it was best.

    Attributes:
        patience: it stops after this many epochs without a new best; None: never.
        diverged: the epoch in which its loss became infinite or NaN, or 0.
    """

    patience: int | None
    lines: list[Epoch] = field(default_factory=list)
    best: W | None = None
    last: W | None = None
    best_epoch: int = 0
    stopped: bool = False
    diverged: int = 0

    def add(self, line: Epoch, weights: Callable[[], W]) -> None:
        """Add an epoch; a head that has stopped, or diverges, keeps what it had.

        Raises:
            HeadError: it diverges in its first epoch.
        """
        if self.stopped:
            return
        if not (math.isfinite(line.train_loss) and math.isfinite(line.validation_loss)):
            if self.best is None:
                raise divergence(line.epoch)
            self.stopped, self.diverged = True, line.epoch
            return
        self.last = weights()
        if self.best_epoch == 0 or _rank(line) > _rank(self.lines[self.best_epoch - 1]):
            self.best, self.best_epoch = self.last, line.epoch
        self.lines.append(line)
        self.stopped = self.patience is not None and line.epoch - self.best_epoch >= self.patience

    def add_scorer(self, line: Epoch, scorer: W, on_epoch: OnEpoch | None) -> bool:
        """Add an epoch of a head that is trained alone; whether the training is over.

        Raises:
            HeadError: it diverges, in whichever epoch.
        """
        self.add(line, lambda: scorer)
        if self.diverged:
            raise divergence(line.epoch)
        if on_epoch:
            on_epoch(line)
        return self.stopped

    def fit(self, scorer: Callable[[W], Scorer]) -> Fit:
        """The result, with `scorer` of the best and of the last weights."""
        assert self.best is not None and self.last is not None
        about = {"diverged_in_epoch": float(self.diverged)} if self.diverged else None
        return Fit(scorer(self.best), scorer(self.last), tuple(self.lines), self.best_epoch, about)


def divergence(epoch: int) -> HeadError:
    """The error to raise where the loss became infinite or NaN."""
    return HeadError(f"the loss diverged in epoch {epoch}", hint="use a smaller --lr")


def _rank(line: Epoch) -> tuple[float, float]:
    return line.validation_accuracy, -line.validation_loss


def check_settings(settings: HeadSettings | Mapping[str, Any]) -> None:
    """Refuse settings out of their range, as `featcache.settings` has it.

    Raises:
        HeadError: names the flag.
    """
    known, values = _options(), settings if isinstance(settings, Mapping) else asdict(settings)
    try:
        for name, value in values.items():
            coerce(known[name], value)
    except UsageError as error:
        raise HeadError(error.what, hint=error.hint) from None
    if values.get("class_weight", "none") not in ("none", "balanced"):
        raise HeadError(
            "class weights by name need names: make row weights of them first (row_weights.py)",
            hint="featcache.runs does it from the settings",
        )


def steps_of(settings: HeadSettings, rows: int) -> int:
    """How many batches all epochs over so many rows have."""
    return settings.epochs * -(-rows // settings.batch_size)


@functools.cache
def _options() -> dict[str, Option]:
    return options(HeadSettings)


def schedule_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """What the learning rate is multiplied by in step `step` (from 0) of `total`: above 0, at most 1.

    Args:
        warmup: share of all steps over which it rises in a line.
        schedule: what follows: `constant`, or down to 0 after the last step by `linear` or half a `cosine`.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    passed = (step - rising) / max(total - rising, 1)
    if schedule == "linear":
        return 1 - passed
    if schedule == "cosine":
        return (1 + math.cos(math.pi * passed)) / 2
    return 1.0
