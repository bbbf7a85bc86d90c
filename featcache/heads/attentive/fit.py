"""Training of the attentive head: AdamW over packed batches, the best epoch by validation kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featcache.backbone.token_rows import SMALL_STEP, TokenRows
from featcache.errors import HeadError, UsageError
from featcache.heads.features import LabelledFeatures, fixed_logits
from featcache.heads.fit import (
    Epoch,
    Fit,
    OnEpoch,
    TrainingHistory,
    check_settings,
    divergence,
    schedule_factor,
)
from featcache.heads.mlp import adamw, loss_of_rows, score_rows
from featcache.heads.scorers import Attentive
from featcache.settings import HeadSettings
from featcache.system.machine import one_thread_if

if TYPE_CHECKING:
    import torch

    from featcache.backbone.packing import PackedLayout

SAMPLED = 1000  # train texts whose tokens the states are standardised by
AT_ONCE = 32  # of them
FIRST = 0.02  # deviation of the first queries, of standardised states


def fit_attentive(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> Fit:
    """Queries and a linear layer on what they pool, trained together by AdamW (arXiv:1711.05101).

    States are standardised by the tokens of some train texts; that is folded into queries and weights. As in
    the mlp head, only labels that train rows can teach are trained. torch's own random state is neither
    read nor changed.

    Args:
        train, validation: `TokenRows` with labels.
        settings: `queries`, `passes`, and of what the mlp head reads all but its layer.

    Raises:
        HeadError: rows no head can be trained on, more queries than numbers in a state, a loss that diverges.
        UsageError: features that are no token states.
    """
    check_settings(settings)
    _check(train, validation, settings)
    numbers = settings.batch_size * train.x.shape[1] * float(train.x.lengths.mean())  # type: ignore[attr-defined]
    with one_thread_if(numbers < SMALL_STEP):
        training = _AttentiveTraining(train, classes, settings, seed)
        history = TrainingHistory[Attentive](settings.patience)
        for number in range(1, settings.passes + 1):
            seen = training.epoch()
            scorer = training.network.scorer()
            if not all(np.isfinite(part).all() for part in scorer.tensors().values()):
                raise divergence(number)
            line = Epoch(number, *seen, *score_rows(scorer, validation))
            if history.add_scorer(line, scorer, on_epoch):
                break
        return history.fit(lambda scorer: scorer)


def _check(train: LabelledFeatures, validation: LabelledFeatures, settings: HeadSettings) -> None:
    if not isinstance(train.x, TokenRows) or not isinstance(validation.x, TokenRows):
        raise UsageError(
            "the attentive head reads token states, not features",
            hint="featcache train-head --head attentive",
        )
    if settings.queries > train.x.width:
        raise HeadError(
            f"{settings.queries} queries for states of {train.x.width} numbers: each averages some of them",
            hint=f"use --queries {train.x.width} or fewer",
        )
    if (train.y == train.y[0]).all():
        raise HeadError(
            "the train labels hold a single class; there is nothing to learn",
            hint="is the label column the right one? at least two labels are needed: --label-column names it",
        )


class _AttentiveTraining:
    """The network with its optimizer and loss."""

    def __init__(self, train: LabelledFeatures, classes: int, settings: HeadSettings, seed: int) -> None:
        from featcache.heads.stack_loss import class_weights

        self.train, self.settings, self.done = train, settings, 0
        self.network = _LearnedPooling(train.x, fixed_logits(train.y, classes), settings.queries, seed)
        balanced = settings.class_weight != "none"
        weights = class_weights(train.y, classes, settings.class_weight).numpy() if balanced else None
        smoothing, device = settings.label_smoothing, self.network.device
        self.loss = loss_of_rows(train.y, self.network.seen, smoothing, weights, device)
        self.optimizer = adamw(self.network.parameters, settings.weight_decay)

    def epoch(self) -> tuple[float, float]:
        """All rows once; their mean loss and accuracy, each row before its own step.

        These come to the host when all steps are done: it waits for the device in none of them.
        """
        import torch

        settings, count = self.settings, len(self.train.y)
        total = settings.passes * -(-count // settings.batch_size)
        lost, right, sizes = list[torch.Tensor](), list[torch.Tensor](), list[int]()
        for step in self.network.steps(self.train, settings.batch_size):
            factor = schedule_factor(self.done, total, settings.warmup, settings.schedule)
            self.optimizer.param_groups[0]["lr"] = settings.lr * factor
            self.optimizer.zero_grad()
            logits = self.network.logits(*step.batch)
            loss = self.loss(logits, step.labels, step.weights)
            loss.backward()
            self.optimizer.step()
            self.done += 1
            lost.append(loss.detach())
            right.append(step.right(logits.detach()))
            sizes.append(len(step.labels))
        whole = 0.0
        for mean, size in zip(torch.stack(lost).tolist(), sizes, strict=True):
            whole += mean * size
        return whole / count, int(torch.stack(right).sum()) / count


class _TextStep(NamedTuple):
    """The texts of a step, longest first: see `TokenRows.batch`, labels among those seen, and weights."""

    batch: tuple[torch.Tensor, PackedLayout]
    labels: torch.Tensor
    weights: torch.Tensor | None

    def right(self, logits: torch.Tensor) -> torch.Tensor:
        """How many rows have all their labels right."""
        if self.labels.dim() == 1:
            return (logits.argmax(1) == self.labels).sum()
        return ((logits >= 0) == self.labels.bool()).all(1).sum()


class _LearnedPooling:
    """What is learnt, while it is trained: of standardised states, for labels that can be learnt."""

    def __init__(self, x: Any, fixed: np.ndarray, queries: int, seed: int) -> None:
        import torch

        self.fixed, self.seen = fixed, np.flatnonzero(fixed == 0)
        self.dice = np.random.default_rng(seed % 2**64)
        self.device = torch.device(x.device)
        layers, width = len(x.layers), x.width
        self.mean, self.scale = self._standard(x)  # float32 `[L, H]`

        def parameter(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(self.device).requires_grad_()

        self.queries = parameter(self.dice.normal(0, FIRST, (layers, queries, width)))
        self.weight = parameter(np.zeros((len(self.seen), layers * width)))
        self.bias = parameter(np.zeros(len(self.seen)))

    def _standard(self, x: TokenRows) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the states of some texts at each layer."""
        import torch

        from featcache.backbone.attentive import PIECE

        rows = self.dice.permutation(len(x))[:SAMPLED]
        count, sums, squares = 0, *torch.zeros(2, len(x.layers), x.width, dtype=torch.float64)
        center: torch.Tensor | None = None  # near the mean, so that float32 loses nothing
        for batch, _ in x.batches(np.array_split(rows, -(-len(rows) // AT_ONCE))):
            for states in batch.split(PIECE, 1):
                own = states.float()
                center = own.mean(1, keepdim=True) if center is None else center
                own = own - center
                count += own.shape[1]
                sums += own.sum(1).cpu()
                squares += own.square().sum(1).cpu()
        assert center is not None
        mean = sums / count
        deviation = (squares / count - mean**2).clamp_min(0).sqrt()
        mean += center[:, 0].cpu()
        constant = deviation <= 1e-6 * mean.abs()
        scale = torch.where(constant, 1.0, deviation)
        return mean.float().to(self.device), scale.float().to(self.device)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.queries, self.weight, self.bias]

    def steps(self, train: LabelledFeatures, size: int) -> Iterator[_TextStep]:
        """One epoch in a new order."""
        from featcache.backbone.device_copies import copier_of

        x: Any = train.x
        send = copier_of(self.device).to_device
        order = self.dice.permutation(len(train.y))
        parts = [order[first : first + size] for first in range(0, len(order), size)]
        parts = [rows[np.argsort(-x[rows].lengths, kind="stable")] for rows in parts]
        for rows, batch in zip(parts, x.batches(parts), strict=True):
            y, weights = train.y[rows], None
            labels = np.searchsorted(self.seen, y) if y.ndim == 1 else y[:, self.seen].astype(np.float32)
            if train.weight is not None:
                weights = send(train.weight[rows].astype(np.float32))
            yield _TextStep(batch, send(labels), weights)

    def logits(self, states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        """Of some texts, for the labels that can be learnt."""
        import torch

        from featcache.backbone.attentive import pool_layers

        pooled = pool_layers(states, layout, self.queries / self.scale[:, None])
        standard = (pooled - self.mean[:, None]) / self.scale[:, None]
        features = standard.transpose(0, 1).flatten(1)
        return torch.nn.functional.linear(features, self.weight, self.bias)

    def scorer(self) -> Attentive:
        """A copy, for states as they are and all labels."""
        import torch

        with torch.no_grad():
            queries = (self.queries / self.scale[:, None]).cpu().numpy()
            weight = (self.weight / self.scale.flatten()).cpu().numpy()
        every = np.zeros((len(self.fixed), weight.shape[1]), np.float32)
        bias = self.fixed.astype(np.float32)
        every[self.seen], bias[self.seen] = weight, self.bias.detach().cpu().numpy()
        return Attentive(queries, self.mean.cpu().numpy(), every, bias)
