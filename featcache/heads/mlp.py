"""A head with one hidden layer: AdamW over mini-batches, early stopping on validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import HeadError
from featcache.heads.features import LabelledFeatures, Standard, check_splits, fixed_logits, row_slices
from featcache.heads.fit import (
    Epoch,
    Fit,
    OnEpoch,
    TrainingHistory,
    check_settings,
    divergence,
    schedule_factor,
    steps_of,
)
from featcache.heads.probabilities import softmax
from featcache.heads.scorers import Mlp, Scorer
from featcache.settings import HeadSettings
from featcache.system.machine import one_thread_if

if TYPE_CHECKING:
    import torch

SMALL_STEP = 1 << 25  # products of one layer in one step: 1 ms


def fit_mlp(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    class_weight: np.ndarray | None = None,
    on_epoch: OnEpoch | None = None,
) -> Fit:
    """ReLU network with one hidden layer on standardised features, by AdamW (arXiv:1711.05101).

    Only what the train rows can teach is trained: a class that none of them has gets weight 0 and bias -1e4;
    of several labels, one that none or all of them have gets the constant logit -1e4 or 1e4. Equal arguments
    give equal weights on one machine with one number of threads; torch's own random state is neither read
    nor changed. Both splits are scored with the weights after the epoch, without dropout, label smoothing and
    class weights.

    Args:
        train: features may be memory-mapped; the rows of one step are standardised at a time. A step divides
            by the weights of its rows.
        validation: chooses the best epoch and, with patience, the last one.
        settings: `hidden`, `dropout` and what the linear head reads. Class weights multiply a row's loss, and
            a step divides by the weights of its rows, as torch's cross_entropy does; with several labels
            they multiply the loss of rows that have the label (torch's `pos_weight`).
        class_weight: `[C]` above 0; by default what `settings` says.

    Raises:
        HeadError: rows no head can be trained on, settings out of range, a loss that diverges.
    """
    check_settings(settings)
    check_splits(train, validation, classes)
    network = _Network(train, classes, settings.hidden, seed)
    weights = _class_weights(train.y, classes, settings) if class_weight is None else class_weight
    loss = loss_of_rows(train.y, network.seen, settings.label_smoothing, _checked_weights(weights, network))
    optimizer = network.optimizer(settings.weight_decay)
    steps, total = 0, steps_of(settings, len(train.x))
    history = TrainingHistory[Mlp](settings.patience)
    for number in range(1, settings.epochs + 1):
        with one_thread_if(settings.batch_size * network.w1.numel() < SMALL_STEP):
            for x, y, weight in network.batches(train, settings.batch_size):
                factor = schedule_factor(steps, total, settings.warmup, settings.schedule)
                optimizer.param_groups[0]["lr"] = settings.lr * factor
                optimizer.zero_grad()
                loss(network.forward(x, settings.dropout), y, weight).backward()
                optimizer.step()
                steps += 1
        scorer = network.scorer()
        if not all(np.isfinite(part).all() for part in scorer.tensors().values()):
            raise divergence(number)
        line = Epoch(number, *score_rows(scorer, train), *score_rows(scorer, validation))
        if history.add_scorer(line, scorer, on_epoch):
            break
    return history.fit(lambda scorer: scorer)


class _Network:
    """The weights while they are trained: of standardised features, for what can be learnt."""

    def __init__(self, train: LabelledFeatures, classes: int, hidden: int, seed: int) -> None:
        import torch

        self.dice = torch.Generator().manual_seed(seed)
        self.standard = Standard.of(train.x)
        self.fixed = fixed_logits(train.y, classes)
        self.seen = np.flatnonzero(self.fixed == 0)
        width = train.x.shape[1]
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

    def batches(
        self, train: LabelledFeatures, size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """One epoch in a new order: float32 features, labels among those seen, and weights."""
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
            own = train.weight
            weight = None if own is None else torch.tensor(own[rows], dtype=torch.float32)
            yield features, labels, weight

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


def loss_of_rows(
    y: np.ndarray, seen: np.ndarray, smoothing: float, weights: np.ndarray | None
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """The loss of logits `[B, S]` of the labels `seen`, by their labels and the weights of the rows.

    Args:
        y: all labels, which say whether a row has one or several.
        weights: `[C]`, of the classes.
    """
    import torch

    weight = None if weights is None else torch.tensor(weights[seen], dtype=torch.float32)
    binary = torch.nn.functional.binary_cross_entropy_with_logits

    def loss(logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """A mean; with `rows` weighted by them."""
        how = "mean" if rows is None else "none"
        if y.ndim == 1:
            found = torch.nn.functional.cross_entropy(
                logits, labels, weight, label_smoothing=smoothing, reduction=how
            )
            mass = rows if rows is None or weight is None else rows * weight[labels]
        else:
            target = labels * (1 - smoothing) + smoothing / 2
            found, mass = binary(logits, target, pos_weight=weight, reduction=how), rows
            found = found if rows is None else found.mean(1)
        return found if rows is None or mass is None else (found * rows).sum() / mass.sum().clamp_min(1e-30)

    return loss


def score_rows(scorer: Scorer, rows: LabelledFeatures) -> tuple[float, float]:
    """Loss and accuracy, some rows at a time; no probability counts as less than 1e-15."""
    lost, right = 0.0, 0
    for part in row_slices(rows.x):
        logits, labels = scorer.logits(rows.x[part]), rows.y[part]
        if labels.ndim == 1:
            true = softmax(logits)[np.arange(len(labels)), labels]
            right += int((logits.argmax(axis=1) == labels).sum())
        else:
            signed = np.where(labels, logits, -logits).astype(np.float64)
            true = np.exp(-np.logaddexp(0, -signed))
            right += int(((logits >= 0) == labels).all(axis=1).sum())
        lost -= float(np.log(np.maximum(true, 1e-15)).sum())
    return lost / rows.y.size, right / len(rows.y)


def _class_weights(y: np.ndarray, classes: int, settings: HeadSettings) -> np.ndarray | None:
    from featcache.heads.stack_loss import class_weights

    balanced = settings.class_weight != "none"
    return class_weights(y, classes, settings.class_weight).numpy() if balanced else None


def _checked_weights(weights: np.ndarray | None, network: _Network) -> np.ndarray | None:
    if weights is None:
        return None
    classes, seen = len(network.fixed), network.seen
    fine = np.shape(weights) == (classes,) and np.isfinite(weights[seen]).all() and (weights[seen] > 0).all()
    if not fine:
        raise HeadError(
            f"class weights must be {classes} numbers, above 0 for each class in train",
            hint="none, balanced, or a number above 0 for each label: --class-weight",
        )
    return weights
