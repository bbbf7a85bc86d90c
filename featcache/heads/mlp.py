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

    from featcache.heads.device.rows import DeviceRows

SMALL_STEP = 1 << 25  # products of one layer in one step: 1 ms
WORTH_A_GPU = 3e7  # a guess, until it is measured: on a GPU a smaller step takes the time of its launches
NUMBERS_AT_ONCE = 1 << 22  # of a layer, when rows are scored on a device: 16 MB


def fit_mlp(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    class_weight: np.ndarray | None = None,
    on_epoch: OnEpoch | None = None,
    device: str = "cpu",
) -> Fit:
    """ReLU network with one hidden layer on standardised features, by AdamW (arXiv:1711.05101).

    Only what the train rows can teach is trained: a class that none of them has gets weight 0 and bias -1e4;
    of several labels, one that none or all of them have gets the constant logit -1e4 or 1e4. Equal arguments
    give equal weights on one machine with one number of threads, and those of a GPU are the CPU's up to
    rounding: all random numbers are drawn on the CPU. torch's own random state is neither read nor changed.
    Both splits are scored with the weights after the epoch, without dropout, label smoothing and class
    weights.

    Args:
        train: features may be memory-mapped; the rows of one step are standardised at a time. A step divides
            by the weights of its rows.
        validation: chooses the best epoch and, with patience, the last one.
        settings: `hidden`, `dropout` and what the linear head reads. Class weights multiply a row's loss, and
            a step divides by the weights of its rows, as torch's cross_entropy does; with several labels
            they multiply the loss of rows that have the label (torch's `pos_weight`).
        class_weight: `[C]` above 0; by default what `settings` says.
        device: see `head_device`. Features stay there if they take at most half of what is free, else the
            rows of a step are sent; both splits are scored there.

    Raises:
        HeadError: rows no head can be trained on, settings out of range, a loss that diverges.
        UsageError: that device is not there.
    """
    from featcache.heads.device.choose import head_device
    from featcache.heads.device.rows import DeviceRows

    check_settings(settings)
    check_splits(train, validation, classes)
    operations = 6.0 * settings.batch_size * settings.hidden * (train.x.shape[1] + classes)  # of a step
    place = head_device(device, operations, WORTH_A_GPU)
    network = _Network(train, classes, settings.hidden, seed, place)
    held_out = DeviceRows(validation, network.standard, place)
    weights = _class_weights(train.y, classes, settings) if class_weight is None else class_weight
    training = _Training(network, settings, _checked_weights(weights, network))
    history = TrainingHistory[Mlp](settings.patience)
    for number in range(1, settings.epochs + 1):
        training.epoch()
        scorer = network.scorer()
        if not all(np.isfinite(part).all() for part in scorer.tensors().values()):
            raise divergence(number)
        scores = (network.scores(scorer, rows) for rows in (network.train, held_out))
        if history.add_scorer(Epoch(number, *next(scores), *next(scores)), scorer, on_epoch):
            break
    return history.fit(lambda scorer: scorer)


class _Training:
    """A network with its optimizer and loss."""

    def __init__(self, network: _Network, settings: HeadSettings, weights: np.ndarray | None) -> None:
        self.network, self.settings, self.done = network, settings, 0
        y, smoothing = network.train.rows.y, settings.label_smoothing
        self.loss = loss_of_rows(y, network.seen, smoothing, weights, network.device)
        self.optimizer = adamw(network.parameters, settings.weight_decay)

    def epoch(self) -> None:
        """All rows once; nothing in a step waits for the device."""
        network, settings = self.network, self.settings
        total = steps_of(settings, len(network.train.labels))
        with one_thread_if(settings.batch_size * network.w1.numel() < SMALL_STEP):
            for x, y, weight in network.batches(settings.batch_size):
                factor = schedule_factor(self.done, total, settings.warmup, settings.schedule)
                self.optimizer.param_groups[0]["lr"] = settings.lr * factor
                self.optimizer.zero_grad()
                self.loss(network.forward(x, settings.dropout), y, weight).backward()
                self.optimizer.step()
                self.done += 1


class _Network:
    """The weights while they are trained: of standardised features, for what can be learnt.

    They begin as on the CPU, and the order of the rows and what is dropped are drawn there, on any device.
    """

    def __init__(
        self,
        train: LabelledFeatures,
        classes: int,
        hidden: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        import torch

        from featcache.heads.device.rows import DeviceRows

        self.device, self.dice = torch.device(device), torch.Generator().manual_seed(seed)
        self.standard = Standard.of(train.x)
        self.fixed = fixed_logits(train.y, classes)
        self.seen = np.flatnonzero(self.fixed == 0)
        self.train = DeviceRows(train, self.standard, self.device)
        self.learnt = torch.from_numpy(self.seen).to(self.device)
        width = train.x.shape[1]
        self.w1, self.b1 = self._draw((hidden, width), width), self._draw((hidden,), width)
        self.w2, self.b2 = self._draw((len(self.seen), hidden), hidden), self._draw((len(self.seen),), hidden)

    def _draw(self, shape: tuple[int, ...], inputs: int) -> torch.Tensor:
        """As `torch.nn.Linear` begins: uniform within 1 / sqrt(inputs)."""
        import torch

        values = torch.rand(shape, generator=self.dice).mul_(2).sub_(1).div_(math.sqrt(inputs))
        return values.to(self.device).requires_grad_()

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.w1, self.b1, self.w2, self.b2]

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """One epoch in a new order: float32 features, labels among those seen, and weights."""
        import torch

        order = torch.randperm(len(self.train.labels), generator=self.dice).numpy()
        for features, y, weight in self.train.batches(order, size):
            if y.dim() == 1:
                yield features, torch.searchsorted(self.learnt, y), weight
            else:
                yield features, y.index_select(1, self.learnt).float(), weight

    def forward(self, x: torch.Tensor, dropout: float) -> torch.Tensor:
        """Standardised features -> logits of what can be learnt."""
        import torch

        from featcache.backbone.device_copies import copier_of

        units = torch.nn.functional.linear(x, self.w1, self.b1).relu()
        if dropout:
            drawn = torch.rand(units.shape, generator=self.dice) >= dropout
            kept = copier_of(self.device).to_device(drawn.numpy())
            units = units * (kept / (1 - dropout))
        return torch.nn.functional.linear(units, self.w2, self.b2)

    def scores(self, scorer: Mlp, rows: DeviceRows) -> tuple[float, float]:
        """Loss and accuracy of rows: on the CPU by `scorer`, a copy of the weights, elsewhere by these."""
        import torch

        if self.device.type == "cpu":
            return score_rows(scorer, rows.rows)
        fixed = torch.from_numpy(self.fixed).float().to(self.device)

        def logits(x: torch.Tensor) -> torch.Tensor:
            return fixed.repeat(len(x), 1).index_copy_(1, self.learnt, self.forward(x, 0.0))

        return rows.scores(logits, max(1, NUMBERS_AT_ONCE // max(*self.w1.shape, len(self.fixed))))

    def scorer(self) -> Mlp:
        """A copy of the weights for features as stored and all classes."""
        w1, b1, w2, b2 = (part.detach().cpu().numpy().copy() for part in self.parameters)
        all_w2 = np.zeros((len(self.fixed), w2.shape[1]), np.float32)
        all_b2 = self.fixed.astype(np.float32)
        all_w2[self.seen], all_b2[self.seen] = w2, b2
        return Mlp(*self.standard.fold(w1, b1), all_w2, all_b2)


def adamw(parameters: list[torch.Tensor], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; one kernel updates all parameters where their device has that."""
    import torch

    fused = parameters[0].device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=fused)


def loss_of_rows(
    y: np.ndarray,
    seen: np.ndarray,
    smoothing: float,
    weights: np.ndarray | None,
    device: torch.device | str = "cpu",
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """The loss of logits `[B, S]` of the labels `seen`, by their labels and the weights of the rows.

    Args:
        y: all labels, which say whether a row has one or several.
        weights: `[C]`, of the classes.
        device: of the logits, their labels and the weights of the rows.
    """
    import torch

    weight = None if weights is None else torch.tensor(weights[seen], dtype=torch.float32).to(device)
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
