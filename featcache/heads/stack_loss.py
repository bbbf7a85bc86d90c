"""The losses of many heads on the same rows: their gradients, and the loss and accuracy of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from featcache.fingerprint import REGRESSION, task_of
from featcache.heads.device.choose import CPU
from featcache.heads.features import counts_of
from featcache.heads.fit import Member

SMALLEST = 1e-30  # that a batch's loss is divided by


class StackLoss:
    """The gradient of each head's loss with respect to its logits.

    All losses here have the gradient `(p * S - T) / n` for probabilities p: plain cross-entropy has S = 1, T
    the label; smoothing and class weights change S, T and n as `torch.nn.functional.cross_entropy` (and
    `binary_cross_entropy_with_logits` with `pos_weight`) defines them.

    Args:
        y: labels of all rows, int `[N]` or multi-hot `[N, C]`.
        members: H heads.
        device: of the probabilities and of all tensors here.

    Attributes:
        labels: the same as a tensor.
    """

    def __init__(
        self, y: np.ndarray, classes: int, members: Sequence[Member], device: torch.device = CPU
    ) -> None:
        self.multi_label, self.classes = y.ndim == 2, classes
        self.labels = torch.tensor(y, dtype=torch.uint8 if self.multi_label else torch.int64).to(device)
        smoothing = torch.tensor([member.label_smoothing for member in members])[:, None]  # [H, 1]
        weights = torch.stack([class_weights(y, classes, member.class_weight) for member in members])
        self.plain = bool((smoothing == 0).all() and (weights == 1).all())
        self.smoothing, self.weights = smoothing.to(device), weights.to(device)  # [H, 1], [H, C]
        spread = (smoothing / classes)[:, :, None]
        table = ((1 - smoothing[:, :, None]) * torch.eye(classes) + spread) * weights[:, None, :]
        # T: [H, C of the logit, C of the row's label]
        self.table = table.transpose(1, 2).contiguous().to(device)
        self.mass = self.table.sum(1, keepdim=True)

    def outputs(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of logits `[H, C, B]`, which may be changed in place."""
        return logits.sigmoid_() if self.multi_label else torch.softmax(logits, 1)

    def loss_and_hits(self, probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed loss and right answers of probabilities `[H, C, B]`, float64 `[2, H]`."""
        return torch.stack(loss_and_hits(probabilities, labels))

    def truths(self, labels: torch.Tensor, sizes: int | list[int]) -> Sequence[torch.Tensor]:
        """Batches of these sizes, of rows with labels `[M]` or multi-hot `[M, C]`, as float32 `[C, B]`."""
        one_hot = torch.eye(self.classes, device=labels.device)
        truth = labels.T.float() if self.multi_label else one_hot.index_select(1, labels)
        batches: Sequence[torch.Tensor] = truth.split(sizes, 1)
        return batches

    def masses(
        self, labels: torch.Tensor, size: int, weights: torch.Tensor | None = None
    ) -> Sequence[float | torch.Tensor]:
        """What each batch's summed loss is divided by: a number, or with class weights `[H, 1, 1]`.

        Args:
            labels: of all rows of the batches, whichever worker has them.
            weights: of the same rows, `[M]`; None where they count alike.
        """
        if weights is not None:
            return self._weighted_masses(labels.split(size), weights.split(size))
        if self.plain or self.multi_label:
            terms = self.classes if self.multi_label else 1
            whole, rest = divmod(len(labels), size)
            return [float(size * terms)] * whole + [float(rest * terms)] * (rest > 0)
        return [self.weights.index_select(1, part).sum(1)[:, None, None] for part in labels.split(size)]

    def _weighted_masses(
        self, labels: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> Sequence[float | torch.Tensor]:
        """As `masses`; a batch of rows that do not count has the smallest, and no gradient."""
        if self.plain or self.multi_label:
            terms = self.classes if self.multi_label else 1
            return [max(terms * mass, SMALLEST) for mass in torch.stack([*map(torch.sum, weights)]).tolist()]
        both = zip(labels, weights, strict=True)
        by_row = (self.weights.index_select(1, part) * weight for part, weight in both)
        return [part.sum(1)[:, None, None].clamp_min(SMALLEST) for part in by_row]

    def error(
        self,
        probabilities: torch.Tensor,
        truth: torch.Tensor,
        mass: float | torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, float]:
        """The gradient `[H, C, B]` of the mean loss, and a factor that it has yet to be multiplied by."""
        error, scale = self._error_of_equal_rows(probabilities, truth, mass)
        return (error if weights is None else error * weights), scale

    def _error_of_equal_rows(
        self, probabilities: torch.Tensor, truth: torch.Tensor, mass: float | torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        if isinstance(mass, torch.Tensor):
            labels = truth.argmax(0)
            error = probabilities * self.mass.index_select(2, labels) - self.table.index_select(2, labels)
            return error / mass, 1.0
        scale = 1 / mass
        if self.plain:
            return probabilities - truth, scale
        smoothed = truth * (1 - self.smoothing[:, :, None]) + self.smoothing[:, :, None] / 2
        pulled = self.weights[:, :, None] * smoothed
        return probabilities * (1 - smoothed + pulled) - pulled, scale


class SquaredLoss(StackLoss):
    """The mean squared error of numbers, of which a head has one logit.

    The gradient is that of half of it, as that of cross-entropy has no factor 2 either. What counts as right
    of a row is 1 minus its squared error: the share of the variance that is explained, where the labels have
    a variance of 1.

    Args:
        y: numbers of all rows, float `[N]`.
    """

    def __init__(self, y: np.ndarray, members: Sequence[Member], device: torch.device = CPU) -> None:
        self.multi_label, self.classes, self.plain = False, 1, True
        self.labels = torch.tensor(y, dtype=torch.float32).to(device)

    def outputs(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def loss_and_hits(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        squares = (outputs[:, 0] - labels).double().square()
        return torch.stack([squares.sum(1), (1 - squares).sum(1)])

    def truths(self, labels: torch.Tensor, sizes: int | list[int]) -> Sequence[torch.Tensor]:
        batches: Sequence[torch.Tensor] = labels[None].split(sizes, 1)
        return batches


def stack_loss(
    y: np.ndarray, classes: int, members: Sequence[Member], device: torch.device = CPU
) -> StackLoss:
    """The loss for labels: of classes a cross-entropy, of numbers the squared error."""
    numbers = task_of(y) == REGRESSION
    return SquaredLoss(y, members, device) if numbers else StackLoss(y, classes, members, device)


def class_weights(y: np.ndarray, classes: int, kind: str | tuple[float, ...]) -> torch.Tensor:
    """`[C]`: single-label N / (C * rows); multi-label the negatives over the positives of each label.

    Args:
        kind: `balanced`; `none`: ones; or the weights themselves.
    """
    if not isinstance(kind, str):
        return torch.tensor(kind, dtype=torch.float32)
    if kind == "none":
        return torch.ones(classes)
    counts = np.maximum(counts_of(y, classes), 1).astype(np.float64)
    weights = len(y) / (classes * counts) if y.ndim == 1 else np.maximum(len(y) - counts, 1) / counts
    return torch.tensor(weights, dtype=torch.float32)


def loss_and_hits(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss and right answers of probabilities `[H, C, B]`, float64 `[H]` each."""
    if labels.ndim == 1:
        true = probabilities.gather(1, labels.expand(len(probabilities), 1, -1))[:, 0]
        top = probabilities.amax(1)  # ten times as fast as argmax where there are few classes
        right = true == top
        if torch.count_nonzero(probabilities == top[:, None]) > top.numel():  # ties: argmax takes the first
            right = probabilities.argmax(1) == labels
        return -true.clamp_min(1e-15).log().sum(1, dtype=torch.float64), right.double().sum(1)
    has = labels.T > 0
    true = torch.where(has, probabilities, 1 - probabilities).clamp_min(1e-15)
    right = ((probabilities >= 0.5) == has).all(1)
    return -true.double().log().mean(1).sum(1), right.double().sum(1)
