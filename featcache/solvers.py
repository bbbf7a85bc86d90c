"""How heads are fitted: AdamW over the cached matrix, and scikit-learn's logistic regression.

Both train on standardised features and fold mean and scale into `W, b` at the end, so that the head
takes features as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featcache.config import HeadSettings
from featcache.errors import HeadError
from featcache.heads import softmax
from featcache.metrics import log_loss

Weights = tuple[np.ndarray, np.ndarray]  # W float32 [C, D], b float32 [C]


@dataclass(frozen=True)
class Epoch:
    """One line of the training history, both splits scored with the weights after the epoch."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class Fit:
    """What a solver returns.

    Attributes:
        best: weights of the epoch with the highest validation accuracy (then the lowest loss).
        last: weights after the last epoch.
        history: one entry an epoch; empty for solvers without epochs.
        best_epoch: 1-based; 0 for solvers without epochs.
    """

    best: Weights
    last: Weights
    history: tuple[Epoch, ...] = ()
    best_epoch: int = 0


@dataclass(frozen=True)
class Standard:
    """Mean and scale of each feature, float64 `[D]`; a constant feature keeps scale 1."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Standard:
        mean = x.mean(axis=0, dtype=np.float64)
        scale = x.std(axis=0, dtype=np.float64)
        return cls(mean, np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1), scale, 1.0))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 `[N, D]`, standardised."""
        standardised: np.ndarray = (np.asarray(x, np.float32) - self.mean) / self.scale
        return standardised.astype(np.float32)

    def fold(self, weight: np.ndarray, bias: np.ndarray) -> Weights:
        """Weights for standardised features as weights for features as they are."""
        folded = weight.astype(np.float64) / self.scale
        return folded.astype(np.float32), (bias - folded @ self.mean).astype(np.float32)


def fit_adamw(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    progress: Callable[[Epoch], None] | None = None,
) -> Fit:
    """Softmax regression by AdamW (Loshchilov & Hutter, arXiv:1711.05101), the head of the tutorials.

    Args:
        train: features `[N, D]` and labels int `[N]`.
        validation: likewise; chooses the best epoch.
        progress: called after each epoch.

    Raises:
        HeadError: NaN or infinite features, a single class, no epochs, a loss that diverges.
    """
    import torch

    _check_training(train, validation, settings)
    standard = Standard.of(np.asarray(train[0], np.float32))
    x, y = torch.from_numpy(standard(train[0])), torch.tensor(train[1])
    x_val = torch.from_numpy(standard(validation[0]))
    optimizer = _AdamW(classes, x.shape[1], settings.lr, settings.weight_decay)
    one_hot = torch.nn.functional.one_hot(y, classes).float()
    order = torch.Generator().manual_seed(seed)
    history: list[Epoch] = []
    best: tuple[tuple[float, float], Weights, int] | None = None
    for number in range(1, settings.epochs + 1):
        for rows in torch.randperm(len(x), generator=order).split(settings.batch_size):
            optimizer.step(x.index_select(0, rows), one_hot.index_select(0, rows))
        line = _score_epoch(number, optimizer, (x, train[1]), (x_val, validation[1]))
        if not np.isfinite(line.train_loss):
            raise HeadError(f"the loss diverged in epoch {number}", hint="use a smaller --lr")
        history.append(line)
        if progress:
            progress(line)
        rank = (line.validation_accuracy, -line.validation_loss)
        if best is None or rank > best[0]:
            best = (rank, optimizer.weights(), number)
    assert best is not None
    return Fit(standard.fold(*best[1]), standard.fold(*optimizer.weights()), tuple(history), best[2])


def fit_logistic(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
    settings: HeadSettings,
    *,
    seed: int = 0,
) -> Fit:
    """scikit-learn's `LogisticRegression` (lbfgs) at penalty `settings.C`: the baseline.

    `seed` is there for the sake of one interface: lbfgs draws nothing.

    Raises:
        HeadError: NaN or infinite features, a single class.
    """
    from sklearn.linear_model import LogisticRegression

    _check_training(train, validation, settings)
    standard = Standard.of(np.asarray(train[0], np.float32))
    model = LogisticRegression(C=settings.C, max_iter=1000)
    model.fit(standard(train[0]), train[1])
    weight = np.zeros((classes, train[0].shape[1]), dtype=np.float64)
    bias = np.full(classes, -1e4 if len(model.classes_) < classes else 0.0)  # never seen: never said
    if len(model.classes_) == 2:  # one row of coefficients: the second class against the first
        bias[model.classes_] = 0.0, model.intercept_[0]
        weight[model.classes_[1]] = model.coef_[0]
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    weights = standard.fold(weight, bias)
    return Fit(best=weights, last=weights)


class _AdamW:
    """AdamW on the weights of one softmax layer, with the gradient written out.

    The same updates as `torch.optim.AdamW` (betas 0.9, 0.999, eps 1e-8, decay on weights and bias),
    without a graph: for a layer this small, autograd and the optimizer's own overhead are most of
    the time.
    """

    def __init__(self, classes: int, width: int, lr: float, decay: float) -> None:
        import torch

        # One matrix [C, D + 1]; its last column is the bias.
        self.theta = torch.zeros(classes, width + 1)
        self.gradient = torch.zeros_like(self.theta)
        self.first = torch.zeros_like(self.theta)
        self.second = torch.zeros_like(self.theta)
        self.lr, self.decay, self.steps = lr, decay, 0

    def logits(self, x):  # type: ignore[no-untyped-def]  # torch is imported late
        return x @ self.theta[:, :-1].T + self.theta[:, -1]

    def step(self, x, one_hot) -> None:  # type: ignore[no-untyped-def]
        """One update on features `[B, D]` and one-hot labels `[B, C]`: mean cross-entropy."""
        import torch

        self.steps += 1
        error = self.logits(x).softmax(dim=1).sub_(one_hot).div_(len(x))  # d loss / d logits
        torch.mm(error.T, x, out=self.gradient[:, :-1])
        torch.sum(error, 0, out=self.gradient[:, -1])
        self.theta.mul_(1 - self.lr * self.decay)
        self.first.lerp_(self.gradient, 0.1)
        self.second.mul_(0.999).addcmul_(self.gradient, self.gradient, value=0.001)
        scale = (self.second / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        self.theta.addcdiv_(self.first, scale, value=-self.lr / (1 - 0.9**self.steps))

    def weights(self) -> Weights:
        values = self.theta.numpy().copy()
        return values[:, :-1], values[:, -1]


def _score_epoch(number: int, optimizer: _AdamW, train, validation) -> Epoch:  # type: ignore[no-untyped-def]
    scores: list[float] = []
    for x, labels in (train, validation):
        probabilities = softmax(optimizer.logits(x).numpy())
        accuracy = float((probabilities.argmax(axis=1) == labels).mean())
        scores += [log_loss(probabilities, labels), accuracy]
    return Epoch(number, *scores)


def _check_training(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    settings: HeadSettings,
) -> None:
    for name, value in (("--epochs", settings.epochs), ("--batch-size", settings.batch_size)):
        if value < 1:
            raise HeadError(f"{name} {value}: at least 1 is needed")
    for name, positive in (("--lr", settings.lr), ("--C", settings.C)):
        if not positive > 0:
            raise HeadError(f"{name} {positive}: a number above 0 is needed")
    if len(np.unique(train[1])) < 2:
        raise HeadError("the train labels hold a single class; there is nothing to learn")
    for name, (x, _) in (("train", train), ("validation", validation)):
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise HeadError(
                f"{len(bad)} rows of the {name} features are NaN or infinite, the first is row {bad[0] + 1}",
                hint="extract again with --dtype float32",
            )
