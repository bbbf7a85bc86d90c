"""Many linear heads trained at once: one stack of weights, the same batches for all, one product a step.

Every head has its own learning rate, weight decay, seed, label smoothing, class weights and view, and takes
the steps that `torch.optim.AdamW` would take for it alone on the same batches. Adam's steps do not depend on
the scale of the gradient, so a head's weights are kept divided by its learning rate: one fused update serves
all rates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from featcache.backbone.private_torch import AdamWRates, adamw_
from featcache.cache.view_names import split_view
from featcache.errors import HeadError
from featcache.heads.device.choose import head_device
from featcache.heads.distributed import ALONE, ProcessGroup
from featcache.heads.features import LabelledFeatures, Standard, check_splits
from featcache.heads.fit import (
    Epoch,
    Fit,
    Member,
    TrainingHistory,
    check_settings,
    schedule_factor,
    steps_of,
)
from featcache.heads.minibatches import BatchLoader, PaddedFeatures
from featcache.heads.scorers import Linear
from featcache.heads.stack_loss import stack_loss
from featcache.settings import HeadSettings
from featcache.system.machine import one_thread_if
from featcache.system.sharded_array import slices_of

SMALL_STEP = 1e7  # floating-point operations
WORTH_A_GPU = 1e7  # a guess, until it is measured: on a GPU a smaller step takes the time of ten launches
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8

Views = Mapping[str, LabelledFeatures]


@torch.inference_mode()
def fit_stack(
    train: Views,
    validation: Views,
    classes: int,
    members: Sequence[Member],
    settings: HeadSettings,
    *,
    seed: int = 0,
    on_epoch: Callable[[list[Epoch]], None] | None = None,
    group: ProcessGroup = ALONE,
) -> list[Fit]:
    """Train all `members` by AdamW (Loshchilov & Hutter, arXiv:1711.05101) on standardised features.

    Losses are mean cross-entropy, mean binary cross-entropy for multi-label, or mean squared error of numbers
    (of which `classes` is 0, and a head has one logit). Equal arguments give equal weights on one machine
    with one number of threads; those of a GPU are the CPU's up to rounding.

    Args:
        train: by view; all views have the same rows, labels and weights. A step divides by the weights of
            its batch. A member's view is one of them, or several joined by commas, which it reads side by
            side; each view is read once for all members.
        validation: likewise; chooses each head's best epoch.
        settings: of all heads `epochs`, `batch_size`, `warmup` and `schedule`; of each `patience`.
        seed: of the order of the rows.
        on_epoch: called after each epoch with a line a head.
        group: workers that call this with the same arguments. Each takes the rows of its share out of the
            same batches that one worker would take; gradients are summed in float32 once a step, and all
            make the same update. The weights are those of one worker up to the rounding of these sums.
            To a GPU that it trains on, features that do not fit there are sent some rows at a time.

    Returns:
        A Fit a member, in their order.

    Raises:
        HeadError: rows no head can be trained on, settings out of range, a head that diverges at once.
    """
    _check_settings(members, settings)
    views = list(dict.fromkeys(view for member in members for view in parts_of(member, train)))
    for view in views:
        check_splits(train[view], validation[view], classes, group)
    place = _device(train, members, classes, settings, group)
    stack = _Stack({view: train[view] for view in views}, classes, members, group, place)
    own = {view: group.own_rows(validation[view].x) for view in views}
    held_out = {view: PaddedFeatures.of(own[view], stack.views[view].standard, place) for view in views}
    y_validation = torch.tensor(validation[views[0]].y).to(place, stack.labels.dtype)
    histories = [TrainingHistory[list[torch.Tensor]](settings.patience) for _ in members]
    with stack.loader(settings, seed, train[views[0]].weight) as loader:
        for number in range(1, settings.epochs + 1):
            with one_thread_if(4 * settings.batch_size * stack.gradients.numel() < SMALL_STEP):
                scores = _train_epoch(stack, loader, settings)
            held = stack.scores(held_out, y_validation)
            lines = [Epoch(number, *one, *other) for one, other in zip(scores, held, strict=True)]
            for head, (history, line) in enumerate(zip(histories, lines, strict=True)):
                history.add(line, partial(stack.weights, head))
            if on_epoch:
                on_epoch(lines)
            if all(history.stopped for history in histories):
                break
    return [history.fit(partial(stack.scorer, head)) for head, history in enumerate(histories)]


def parts_of(member: Member, views: Views) -> tuple[str, ...]:
    """The keys of `views` whose features a head reads, in their order."""
    return (member.view,) if member.view in views else split_view(member.view)


def initial_weights(member: Member, classes: int, width: int) -> torch.Tensor:
    """First weights float32 `[C, D + 1]`, the bias last."""
    if member.seed is None:
        return torch.zeros(classes, width + 1)
    dice = torch.Generator().manual_seed(member.seed)
    return (torch.rand(classes, width + 1, generator=dice) * 2 - 1) / math.sqrt(width)


def _check_settings(members: Sequence[Member], settings: HeadSettings) -> None:
    if not members:
        raise HeadError("a stack of no heads", hint="give at least one")
    check_settings(settings)
    for member in members:
        check_settings({"lr": member.lr, "label_smoothing": member.label_smoothing})


def _device(
    train: Views, members: Sequence[Member], classes: int, settings: HeadSettings, group: ProcessGroup
) -> torch.device:
    """Where this worker trains these heads."""
    read = sum(train[view].x.shape[1] for member in members for view in parts_of(member, train))
    operations = 4.0 * settings.batch_size * max(classes, 1) * read  # of a step
    return head_device(group.trains_on, operations, WORTH_A_GPU)


def _train_epoch(stack: _Stack, loader: BatchLoader, settings: HeadSettings) -> list[tuple[float, float]]:
    """One pass over the rows; mean loss and accuracy of each head."""
    sums = torch.zeros(2, len(stack.members), dtype=torch.float64, device=stack.device)
    total = steps_of(settings, len(stack.labels))
    warmup, schedule = settings.warmup, settings.schedule
    for part in loader.epoch():
        truths = stack.loss.truths(part.labels, part.sizes)
        masses = stack.loss.masses(part.all_labels, settings.batch_size, part.all_weights)
        weights = itertools.repeat(None) if part.weights is None else part.weights.split(part.sizes)
        probabilities = [
            stack.step(features, truth, mass, schedule_factor(stack.steps, total, warmup, schedule), weight)
            for features, truth, mass, weight in zip(part.batches(), truths, masses, weights, strict=False)
        ]
        sums += stack.loss_and_hits(torch.cat(probabilities, dim=2), part.labels)
    return stack.means(sums, len(stack.labels))


class _Stack:
    """The weights of all heads by view: `[heads that read the view * C, D + 1 padded]` each.

    The last of the D + 1 columns is the bias, whose feature is 1 in every row; a head of joined views has it
    in the first of them alone. Weights are kept divided by the head's learning rate. Features are those of
    this worker's share, labels those of all rows.
    """

    def __init__(
        self, train: Views, classes: int, members: Sequence[Member], group: ProcessGroup, device: torch.device
    ) -> None:
        self.steps, self.group, self.device = 0, group, device
        names = list(train)
        order = sorted(
            range(len(members)), key=lambda number: names.index(parts_of(members[number], train)[0])
        )
        self.members = [members[number] for number in order]
        self.loss = stack_loss(train[names[0]].y, classes, self.members, device)
        classes = self.classes = self.loss.classes
        self.places = torch.tensor(order).argsort().to(device)  # member -> place in the stack
        self.views = {
            view: PaddedFeatures.of(group.own_rows(rows.x), Standard.of(rows.x, group), device)
            for view, rows in train.items()
        }
        self.parts = [[names.index(view) for view in parts_of(head, train)] for head in self.members]
        readers = [
            [head for head, parts in enumerate(self.parts) if view in parts] for view in range(len(names))
        ]
        # Of each view's rows among all [H * C].
        self.columns = [_columns(heads, classes, device) for heads in readers]
        self.rows = [
            {head: slice(n * classes, (n + 1) * classes) for n, head in enumerate(heads)} for heads in readers
        ]
        self.joined = any(len(parts) > 1 for parts in self.parts)
        self.unused = [  # the rows of each view's heads whose bias is in another view
            _rows_of([n for n, head in enumerate(heads) if self.parts[head][0] != view], classes, device)
            for view, heads in enumerate(readers)
        ]
        rates = torch.tensor([head.lr for head in self.members])
        self.rates = rates.repeat_interleave(classes)[:, None].to(device)  # [H * C, 1]
        decays = rates * torch.tensor([head.weight_decay for head in self.members])
        self.decays = decays.repeat_interleave(classes)[:, None].to(device)
        self.shared_decay = decays[0].item() if (decays == decays[0]).all() else None
        self.theta = self._first_weights()
        # One piece: one exchange between workers.
        self.gradients = torch.zeros(sum(part.numel() for part in self.theta), device=device)
        pieces = self.gradients.split([part.numel() for part in self.theta])
        self.gradient = [piece.view_as(part) for piece, part in zip(pieces, self.theta, strict=True)]
        self.mean = [torch.zeros_like(part) for part in self.theta]
        self.square = [torch.zeros_like(part) for part in self.theta]
        self.labels = self.loss.labels

    def loader(self, settings: HeadSettings, seed: int, weight: np.ndarray | None) -> BatchLoader:
        """Batches of all epochs, in an order of the rows that `seed` draws."""
        dice, rows = torch.Generator().manual_seed(seed), len(self.labels)
        orders = (torch.randperm(rows, generator=dice) for _ in range(settings.epochs))
        weights = None if weight is None else torch.tensor(weight, dtype=torch.float32).to(self.device)
        share = self.group.share(rows)
        return BatchLoader(self.views, self.labels, orders, settings.batch_size, share=share, weights=weights)

    def _first_weights(self) -> list[torch.Tensor]:
        views = list(self.views.values())
        theta = [
            torch.zeros(len(heads) * self.classes, features.padded, device=self.device)
            for heads, features in zip(self.rows, views, strict=True)
        ]
        for head, (member, parts) in enumerate(zip(self.members, self.parts, strict=True)):
            widths = [views[view].width for view in parts]
            weights = initial_weights(member, self.classes, sum(widths)) / member.lr
            for view, width, part in zip(parts, widths, weights.split([*widths, 1], dim=1), strict=False):
                theta[view][self.rows[view][head], :width] = part
            theta[parts[0]][self.rows[parts[0]][head], widths[0]] = weights[:, -1]
        for part, features in zip(theta, views, strict=True):
            # A constant feature (scale 1, see Standard) has no gradient and keeps its weights: zero them.
            part[:, : features.width] *= torch.from_numpy(features.standard.scale != 1.0).to(self.device)
        return theta

    def step(
        self,
        features: list[torch.Tensor],
        truth: torch.Tensor,
        mass: float | torch.Tensor,
        factor: float,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One update of every head on a batch; the probabilities `[H, C, B]` before it.

        Args:
            features: float32 `[B, padded]` of each view.
            truth: float32 `[C, B]`, 1 where a row has the label.
            mass: of the whole batch, see `StackLoss.masses`.
            factor: of the learning rates.
            weight: of the rows, float32 `[B]`.
        """
        probabilities = self._forward(features)
        error, scale = self.loss.error(probabilities, truth, mass, weight)
        error = error.view(len(self.members) * self.classes, -1)
        for part, x, columns in zip(self.gradient, features, self.columns, strict=True):
            own = error if len(features) == 1 else error[columns]
            torch.addmm(part, own, x, beta=0, alpha=scale, out=part)
        if self.joined:
            for part, view, rows in zip(self.gradient, self.views.values(), self.unused, strict=True):
                part[rows, view.width] = 0
        self.group.sum_(self.gradients)
        self._update(factor)
        return probabilities

    def _forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Probabilities `[H, C, B]`, heads in the stack's order.

        Rows come last: classes are few, and kernels are fast along the last dimension only.
        """
        logits = [torch.mm(part, x.T) for x, part in zip(features, self.theta, strict=True)]
        if self.joined:
            joined = torch.zeros(len(self.rates), logits[0].shape[1], device=self.device)
            for columns, part in zip(self.columns, logits, strict=True):
                joined[columns] += part
        else:
            joined = logits[0] if len(logits) == 1 else torch.cat(logits)
        return self.loss.outputs(joined.mul_(self.rates).view(len(self.members), self.classes, -1))

    def _update(self, factor: float) -> None:
        """AdamW with the learning rate at `factor` of its highest.

        The corrections of Adam's first steps go into its rate and epsilon (section 2 of arXiv:1412.6980).
        """
        self.steps += 1
        late = math.sqrt(1 - BETA2**self.steps)
        rate = factor * late / (1 - BETA1**self.steps)
        decay = 0.0
        if self.shared_decay is None:
            for part, columns in zip(self.theta, self.columns, strict=True):
                part.mul_(1 - factor * self.decays[columns])
        elif rate > 0:
            decay = factor * self.shared_decay / rate
        rates = AdamWRates(lr=rate, beta1=BETA1, beta2=BETA2, weight_decay=decay, eps=EPS * late)
        adamw_(self.theta, self.gradient, self.mean, self.square, rates)

    def loss_and_hits(self, probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed loss and right answers of `[H, C, B]`, float64 `[2, H]`, in the members' order."""
        return self.loss.loss_and_hits(probabilities, labels)[:, self.places]

    def means(self, sums: torch.Tensor, rows: int) -> list[tuple[float, float]]:
        """Loss and accuracy of each head from what every worker summed over its share of `rows`."""
        self.group.sum_(sums)
        return list(zip(*(sums / rows).tolist(), strict=True))

    def scores(self, held_out: Mapping[str, PaddedFeatures], y: torch.Tensor) -> list[tuple[float, float]]:
        """Loss and accuracy of each head on other rows, some at a time; `y` of all, features of the share."""
        labels = y[self.group.share(len(y))]
        sums = torch.zeros(2, len(self.members), dtype=torch.float64, device=self.device)
        step = max(256, (1 << 24) // (len(self.members) * self.classes + self.theta[0].shape[1]))
        for rows in slices_of(len(labels), step):
            features = [held_out[view][rows] for view in self.views]
            sums += self.loss_and_hits(self._forward(features), labels[rows])
        return self.means(sums, len(y))

    def weights(self, number: int) -> list[torch.Tensor]:
        """A copy of the weights of member `number` now, `[C, D + 1 padded]` of each of its views."""
        head = int(self.places[number])
        return [self.theta[view][self.rows[view][head]].clone() for view in self.parts[head]]

    def scorer(self, number: int, weights: list[torch.Tensor]) -> Linear:
        """Member `number` with these weights, for features as they are stored."""
        head = int(self.places[number])
        views, lr = list(self.views.values()), self.members[head].lr
        parts = []
        for view, part in zip(self.parts[head], weights, strict=True):
            theta, width = part.double().cpu().numpy() * lr, views[view].width
            parts.append(views[view].standard.fold(theta[:, :width], theta[:, width]))
        weight = np.concatenate([weight for weight, _ in parts], axis=1)
        return Linear(weight, np.stack([bias for _, bias in parts]).sum(axis=0, dtype=np.float32))


def _columns(heads: list[int], classes: int, device: torch.device) -> slice | torch.Tensor:
    """The rows of these heads among those of all, `[H * C]`; a slice where they are neighbours."""
    if heads == list(range(heads[0], heads[-1] + 1)):
        return slice(heads[0] * classes, (heads[-1] + 1) * classes)
    return _rows_of(heads, classes, device)


def _rows_of(heads: list[int], classes: int, device: torch.device) -> torch.Tensor:
    rows = torch.tensor(heads, dtype=torch.int64)[:, None] * classes + torch.arange(classes)
    return rows.flatten().to(device)
