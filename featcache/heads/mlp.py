"""A head with one hidden layer: AdamW over mini-batches, early stopping on validation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featcache.errors import HeadError
from featcache.heads.features import blocks, check_learnable, check_rows, fixed_logits, standard_of
from featcache.heads.fit import Standard, schedule_factor
from featcache.heads.head import softmax
from featcache.heads.scorers import Mlp

if TYPE_CHECKING:
    import torch

Rows = tuple[np.ndarray, np.ndarray]  # features [N, D] as stored, labels int [N] or uint8 [N, C]

SMALL_STEP = 1 << 25  # products of one layer in one step that are not worth a second thread: 1 ms


class MlpEpoch(NamedTuple):
    """One line of the history, both splits scored with the weights after the epoch, without dropout.

    Losses are mean cross-entropies in nats (several labels: over all entries), without smoothing and class
    weights; accuracies are exact matches (several labels: of the whole set, each at probability 0.5).
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class MlpFit:
    """What `fit_mlp` returns.

    Attributes:
        best: after the epoch with the highest validation accuracy, then the lowest loss.
        last: after the last epoch that was trained.
        history: one entry an epoch.
        best_epoch: 1-based.
    """

    best: Mlp
    last: Mlp
    history: tuple[MlpEpoch, ...]
    best_epoch: int


def fit_mlp(
    train: Rows,
    validation: Rows,
    classes: int,
    *,
    hidden: int = 256,
    dropout: float = 0.0,
    epochs: int,
    lr: float,
    weight_decay: float,
    batch_size: int,
    label_smoothing: float = 0.0,
    class_weight: np.ndarray | None = None,
    warmup: float = 0.0,
    schedule: str = "constant",
    patience: int | None = None,
    seed: int,
    progress: Callable[[int, float, float, float, float], None] | None = None,
) -> MlpFit:
    """ReLU network with one hidden layer on standardised features, by AdamW (arXiv:1711.05101).

    Only what the train rows can teach is trained: a class none of them has gets weight 0 and bias -1e4, a
    label of several that none or all have the constant logit -1e4 or 1e4. Equal arguments give equal weights
    on one machine with one number of threads; torch's own random state is neither read nor changed.

    Args:
        train: features may be memory-mapped; the rows of one step are standardised at a time.
        validation: chooses the best epoch and, with patience, the last one.
        hidden: M, units of the hidden layer.
        dropout: share of hidden units left out in a training step, 0 to below 1.
        batch_size: rows of a step; the last of an epoch may be smaller.
        label_smoothing: share of the target spread evenly over the classes (arXiv:1512.00567); 0 to below 1.
        class_weight: `[C]` above 0. Single label: of a row's loss, by its class (a step divides by the
            weights of its rows, as torch's cross_entropy does). Several labels: of the loss of rows that have
            the label (torch's `pos_weight`).
        warmup: share of all steps over which the learning rate rises to `lr`, 0 to 1.
        schedule: what follows: `constant`, or down to 0 at the last step by `linear` or half a `cosine`.
        patience: stop after this many epochs without a new best one.
        progress: called after each epoch with what MlpEpoch has.

    Raises:
        HeadError: rows no head can be trained on, settings out of range, a loss that diverges.
    """
    _check_settings(locals())
    check_rows(*train, classes)
    check_rows(*validation, classes, split="validation")
    check_learnable(*train, classes)
    network = _Network(train, classes, hidden, seed)
    loss = _loss(
        train[1], network.seen, label_smoothing, _checked_weights(class_weight, classes, network.seen)
    )
    optimizer = network.optimizer(weight_decay)
    total = epochs * -(-len(train[0]) // batch_size)
    steps, history = 0, []
    best: tuple[tuple[float, float], Mlp, int] | None = None
    for number in range(1, epochs + 1):
        with _threads_for(batch_size * network.w1.numel()):
            for x, y in network.batches(train, batch_size):
                optimizer.param_groups[0]["lr"] = lr * schedule_factor(steps, total, warmup, schedule)
                optimizer.zero_grad()
                loss(network.forward(x, dropout), y).backward()
                optimizer.step()
                steps += 1
        last = network.scorer()
        _check_finite(number, *last.tensors().values())
        line = MlpEpoch(number, *_score(last, train), *_score(last, validation))
        _check_finite(number, np.array(line))
        history.append(line)
        if progress:
            progress(*line)
        rank = (line.validation_accuracy, -line.validation_loss)
        if best is None or rank > best[0]:
            best = (rank, last, number)
        if patience is not None and number - best[2] >= patience:
            break
    assert best is not None
    return MlpFit(best[1], last, tuple(history), best[2])


class _Network:
    """The weights while they are trained: of standardised features, for what can be learnt."""

    def __init__(self, train: Rows, classes: int, hidden: int, seed: int) -> None:
        import torch

        self.dice = torch.Generator().manual_seed(seed)
        self.standard: Standard = standard_of(train[0])
        self.fixed = fixed_logits(train[1], classes)
        self.seen = np.flatnonzero(self.fixed == 0)
        width = train[0].shape[1]
        self.w1, self.b1 = self._draw((hidden, width), width), self._draw((hidden,), width)
        self.w2, self.b2 = self._draw((len(self.seen), hidden), hidden), self._draw((len(self.seen),), hidden)

    def _draw(self, shape: tuple[int, ...], inputs: int) -> torch.Tensor:
        """As `torch.nn.Linear` begins: uniform within 1 / sqrt(inputs)."""
        import torch

        values = torch.rand(shape, generator=self.dice).mul_(2).sub_(1).div_(math.sqrt(inputs))
        return values.requires_grad_()

    def optimizer(self, weight_decay: float) -> torch.optim.Optimizer:
        import torch

        parameters = [self.w1, self.b1, self.w2, self.b2]
        return torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=True)

    def batches(self, train: Rows, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch in an order of its own: float32 features, and labels among those seen."""
        import torch

        x, y = train
        mean, scale = torch.from_numpy(self.standard.mean), torch.from_numpy(self.standard.scale)
        order = torch.randperm(len(x), generator=self.dice).numpy()
        for first in range(0, len(x), size):
            rows = order[first : first + size]
            features = torch.from_numpy(x[rows]).double().sub_(mean).div_(scale).float()
            if y.ndim == 1:
                labels = torch.from_numpy(np.searchsorted(self.seen, y[rows]))
            else:
                labels = torch.from_numpy(y[rows][:, self.seen].astype(np.float32))
            yield features, labels

    def forward(self, x: torch.Tensor, dropout: float) -> torch.Tensor:
        """Standardised features -> logits of what can be learnt."""
        import torch

        units = torch.nn.functional.linear(x, self.w1, self.b1).relu()
        if dropout:
            kept = torch.rand(units.shape, generator=self.dice) >= dropout
            units = units * (kept / (1 - dropout))
        return torch.nn.functional.linear(units, self.w2, self.b2)

    def scorer(self) -> Mlp:
        """A copy of the weights for features as stored and all classes."""
        w1, b1, w2, b2 = (part.detach().numpy().copy() for part in (self.w1, self.b1, self.w2, self.b2))
        all_w2 = np.zeros((len(self.fixed), w2.shape[1]), np.float32)
        all_b2 = self.fixed.astype(np.float32)
        all_w2[self.seen], all_b2[self.seen] = w2, b2
        return Mlp(*self.standard.fold(w1, b1), all_w2, all_b2)


@contextlib.contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """One thread for steps of few products.

    Two threads make such steps hardly shorter, and many times longer once others want the processors too.
    """
    import torch

    before = torch.get_num_threads()
    if products < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loss(
    y: np.ndarray, seen: np.ndarray, smoothing: float, weights: np.ndarray | None
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Of logits `[B, S]` and labels as `_Network.batches` gives them."""
    import torch

    weight = None if weights is None else torch.tensor(weights[seen], dtype=torch.float32)
    if y.ndim == 1:
        return torch.nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    binary = torch.nn.BCEWithLogitsLoss(pos_weight=weight)
    return lambda logits, labels: binary(logits, labels * (1 - smoothing) + smoothing / 2)


def _score(scorer: Mlp, rows: Rows) -> tuple[float, float]:
    """Loss and accuracy, block by block; no probability counts as less than 1e-15."""
    x, y = rows
    lost, right, first = 0.0, 0, 0
    for block in blocks(x):
        labels = y[first : first + len(block)]
        first += len(block)
        logits = scorer.logits(block)
        if y.ndim == 1:
            true = softmax(logits)[np.arange(len(labels)), labels]
            right += int((logits.argmax(axis=1) == labels).sum())
        else:
            signed = np.where(labels, logits, -logits).astype(np.float64)
            true = np.exp(-np.logaddexp(0, -signed))
            right += int(((logits >= 0) == labels).all(axis=1).sum())
        lost -= float(np.log(np.maximum(true, 1e-15)).sum())
    return lost / y.size, right / len(y)


def _check_finite(epoch: int, *values: np.ndarray) -> None:
    if not all(np.isfinite(value).all() for value in values):
        raise HeadError(f"the loss diverged in epoch {epoch}", hint="use a smaller --lr")


def _checked_weights(weights: np.ndarray | None, classes: int, seen: np.ndarray) -> np.ndarray | None:
    if weights is None:
        return None
    fine = np.shape(weights) == (classes,) and np.isfinite(weights[seen]).all() and (weights[seen] > 0).all()
    if not fine:
        raise HeadError(f"class weights must be {classes} numbers, above 0 for each class in train")
    return weights


def _check_settings(given: dict[str, object]) -> None:
    """Every setting within its limits; the names are the flags'."""
    for name in ("hidden", "epochs", "batch_size", "patience"):
        value = given[name]
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise HeadError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    limits = {
        "lr": (lambda v: 0 < v < math.inf, "a number above 0"),
        "weight_decay": (lambda v: 0 <= v < math.inf, "a number from 0"),
        "dropout": (lambda v: 0 <= v < 1, "a number from 0 to below 1"),
        "label_smoothing": (lambda v: 0 <= v < 1, "a number from 0 to below 1"),
        "warmup": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
        "schedule": (lambda v: v in ("constant", "linear", "cosine"), "constant, linear or cosine"),
    }
    for name, (fits, wanted) in limits.items():
        if not fits(given[name]):
            raise HeadError(f"--{name.replace('_', '-')} {given[name]}: {wanted} is needed")
