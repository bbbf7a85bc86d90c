"""Many linear heads trained at once: one stack of weights, the same batches for all, a product a step.

Every head has its own learning rate, weight decay, seed, label smoothing, class weights and view, and goes
the way `torch.optim.AdamW` would take it alone on the same batches. Adam's steps do not depend on the scale
of the gradient, so a head's weights are kept divided by its learning rate: one fused update serves all rates.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from featcache.backbone.private_torch import AdamWRates, adamw_
from featcache.errors import HeadError
from featcache.heads.distributed import ALONE, Group
from featcache.heads.features import check_learnable, check_rows, counts_of, standard_of
from featcache.heads.fit import Epoch, Fit, schedule_factor
from featcache.heads.minibatches import Feed, Source
from featcache.heads.scorers import Linear
from featcache.system.sharded_array import part_of

SMALL_STEP = 1e7  # floating-point operations
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Member:
    """What one head of a stack has of its own.

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


@dataclass(frozen=True)
class Course:
    """What all heads of a stack share.

    Attributes:
        warmup: share of all steps over which the learning rate rises.
        schedule: what follows: `constant`, `linear` or `cosine` down to 0.
        patience: a head stops after this many epochs without a new best; None: never.
        seed: of the order of the rows.
    """

    epochs: int = 100
    batch_size: int = 32
    warmup: float = 0.0
    schedule: str = "constant"
    patience: int | None = None
    seed: int = 0


@torch.inference_mode()
def fit_stack(
    train: Mapping[str, np.ndarray],
    y: np.ndarray,
    validation: Mapping[str, np.ndarray],
    y_validation: np.ndarray,
    classes: int,
    members: Sequence[Member],
    course: Course,
    progress: Callable[[int, list[Epoch]], None] | None = None,
    group: Group = ALONE,
) -> list[Fit]:
    """Train all `members` by AdamW (Loshchilov & Hutter, arXiv:1711.05101) on standardised features.

    Losses are mean cross-entropy, or mean binary cross-entropy for multi-label. The train figures of an
    epoch are those of its batches as they came, each before its own update. Equal arguments give
    equal weights on one machine with one number of threads.

    Args:
        train: features `[N, D]` by view, float16 or float32, may be memory-mapped.
        y: int `[N]`, or uint8 multi-hot `[N, C]`.
        validation, y_validation: likewise; they choose each head's best epoch.
        progress: called after each epoch with its number and a line a head.
        group: workers that call this together with the same arguments. Each takes the rows of its share out
            of the same batches that one worker would take; gradients are summed in float32 once a step, and
            all make the same update. The weights are those of one worker up to the rounding of these sums.

    Returns:
        A Fit a member, in their order.

    Raises:
        HeadError: rows no head can be trained on, settings out of range, a head that diverges at once.
    """
    _check(train, y, validation, y_validation, classes, members, course, group)
    stack = _Stack(train, y, classes, members, group)
    mine = group.share(len(y_validation))
    held_out = {
        view: Source.of(part_of(validation[view], mine), stack.sources[view].standard) for view in stack.views
    }
    books = [_Book() for _ in members]
    total = course.epochs * -(-len(y) // course.batch_size)
    dice = torch.Generator().manual_seed(course.seed)
    threads = _threads(stack, course.batch_size)
    orders = (torch.randperm(len(y), generator=dice) for _ in range(course.epochs))
    with Feed(stack.sources, stack.labels, orders, course.batch_size, group.share(len(y))) as feed:
        for number in range(1, course.epochs + 1):
            with threads():
                train_scores = _epoch(stack, feed, course, total)
            lines = [
                Epoch(number, *a, *b)
                for a, b in zip(train_scores, stack.scores(held_out, y_validation), strict=True)
            ]
            for head, (book, line) in enumerate(zip(books, lines, strict=True)):
                book.enter(line, partial(stack.weights, head), course.patience)
            if progress:
                progress(number, lines)
            if all(book.stopped for book in books):
                break
    return [book.close(partial(stack.scorer, head)) for head, book in enumerate(books)]


def initial_weights(member: Member, classes: int, width: int) -> torch.Tensor:
    """First weights float32 `[C, D + 1]`, the bias last."""
    if member.seed is None:
        return torch.zeros(classes, width + 1)
    dice = torch.Generator().manual_seed(member.seed)
    return (torch.rand(classes, width + 1, generator=dice) * 2 - 1) / math.sqrt(width)


def _threads(stack: _Stack, batch_size: int) -> Callable[[], AbstractContextManager[None]]:
    """One thread for steps so small that waking a second one takes longer than it saves."""
    step = 4 * batch_size * sum(part.numel() for part in stack.theta)  # floating-point operations
    return _one_thread if step < SMALL_STEP else contextlib.nullcontext


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _epoch(stack: _Stack, feed: Feed, course: Course, total: int) -> list[tuple[float, float]]:
    """One pass over the rows; mean loss and accuracy of each head."""
    sums = torch.zeros(2, len(stack.members), dtype=torch.float64)
    for chunk in feed.epoch():
        wanted = stack.targets.batches(chunk.labels, chunk.sizes)
        masses = stack.targets.masses(chunk.everyone, course.batch_size)
        seen = []
        for features, truth, mass in zip(chunk.batches(), wanted, masses, strict=True):
            factor = schedule_factor(stack.steps, total, course.warmup, course.schedule)
            seen.append(stack.step(features, truth, mass, factor))
        sums += stack.tell(torch.cat(seen, dim=2), chunk.labels)
    return stack.means(sums, len(stack.labels))


class _Stack:
    """The weights of all heads, grouped by view: `[heads of the view * C, D + 1 padded]` each.

    The last of the D + 1 columns is the bias, whose feature is 1 in every row. Weights are kept divided by
    the head's learning rate. Features are those of this worker's share, labels those of all rows.
    """

    def __init__(
        self,
        train: Mapping[str, np.ndarray],
        y: np.ndarray,
        classes: int,
        members: Sequence[Member],
        group: Group,
    ) -> None:
        self.members, self.classes, self.steps, self.group = members, classes, 0, group
        self.views = list(dict.fromkeys(member.view for member in members))
        mine = group.share(len(y))
        self.sources = {
            view: Source.of(part_of(train[view], mine), standard_of(train[view], group))
            for view in self.views
        }
        by_view = [[n for n, member in enumerate(members) if member.view == view] for view in self.views]
        self.order = [number for numbers in by_view for number in numbers]  # place in the stack -> member
        self.place = {number: place for place, number in enumerate(self.order)}
        self.columns, first = [], 0
        for numbers in by_view:
            self.columns.append(slice(first * classes, (first + len(numbers)) * classes))
            first += len(numbers)
        rates = torch.tensor([members[number].lr for number in self.order])
        self.rates = rates.repeat_interleave(classes)[:, None]  # [H * C, 1]
        decays = rates * torch.tensor([members[number].weight_decay for number in self.order])
        self.decays = decays.repeat_interleave(classes)[:, None]
        self.theta = [self._first(view, numbers) for view, numbers in zip(self.views, by_view, strict=True)]
        self.gradients = torch.zeros(sum(part.numel() for part in self.theta))  # one piece: one exchange
        pieces = self.gradients.split([part.numel() for part in self.theta])
        self.gradient = [piece.view_as(part) for piece, part in zip(pieces, self.theta, strict=True)]
        self.mean = [torch.zeros_like(part) for part in self.theta]
        self.square = [torch.zeros_like(part) for part in self.theta]
        self.labels = torch.tensor(y, dtype=torch.int64 if y.ndim == 1 else torch.uint8)
        self.targets = _Targets(y, classes, [members[number] for number in self.order])
        shared = self.decays.unique().tolist()
        self.shared_decay = shared[0] if len(shared) == 1 else None
        self.kept_factor, self.kept = -1.0, [self.decays]

    def _first(self, view: str, numbers: list[int]) -> torch.Tensor:
        source = self.sources[view]
        theta = torch.zeros(len(numbers) * self.classes, source.padded)
        for place, number in enumerate(numbers):
            rows = slice(place * self.classes, (place + 1) * self.classes)
            member = self.members[number]
            theta[rows, : source.width + 1] = initial_weights(member, self.classes, source.width) / member.lr
        # A constant feature (scale 1, see Standard) teaches nothing: it shall say nothing either.
        theta[:, : source.width] *= torch.from_numpy(source.standard.scale != 1.0)
        return theta

    def step(
        self, features: list[torch.Tensor], truth: torch.Tensor, mass: float | torch.Tensor, factor: float
    ) -> torch.Tensor:
        """One update of every head on a batch; the probabilities `[H, C, B]` before it.

        Args:
            features: float32 `[B, padded]` of each view.
            truth: float32 `[C, B]`, 1 where a row has the label.
            mass: of the whole batch, see `_Targets.masses`.
        """
        probabilities = self._forward(features)
        error, scale = self.targets.error(probabilities, truth, mass)
        error = error.view(len(self.members) * self.classes, -1)
        for part, x, columns in zip(self.gradient, features, self.columns, strict=True):
            own = error if len(features) == 1 else error[columns]
            torch.addmm(part, own, x, beta=0, alpha=scale, out=part)
        self.group.sum_(self.gradients)
        self._update(factor)
        return probabilities

    def _forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Probabilities `[H, C, B]`, heads in the stack's order.

        Rows come last: classes are few, and kernels are fast along the last dimension only.
        """
        logits = [torch.mm(part, x.T) for x, part in zip(features, self.theta, strict=True)]
        joined = (logits[0] if len(logits) == 1 else torch.cat(logits)).mul_(self.rates)
        joined = joined.view(len(self.members), self.classes, -1)
        return joined.sigmoid_() if self.targets.multi_label else torch.softmax(joined, 1)

    def _update(self, factor: float) -> None:
        """AdamW with the learning rate at `factor` of its highest.

        The corrections of Adam's first steps go into its rate and epsilon (section 2 of arXiv:1412.6980).
        """
        self.steps += 1
        late = math.sqrt(1 - BETA2**self.steps)
        rate = factor * late / (1 - BETA1**self.steps)
        decay = 0.0
        if self.shared_decay is None:
            self._decay(factor)
        elif rate > 0:
            decay = factor * self.shared_decay / rate
        rates = AdamWRates(lr=rate, beta1=BETA1, beta2=BETA2, weight_decay=decay, eps=EPS * late)
        adamw_(self.theta, self.gradient, self.mean, self.square, rates)

    def _decay(self, factor: float) -> None:
        if factor != self.kept_factor:
            self.kept_factor = factor
            self.kept = [1 - factor * self.decays[columns] for columns in self.columns]
        for part, kept in zip(self.theta, self.kept, strict=True):
            part.mul_(kept)

    def tell(self, probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed loss and right answers of `[H, C, B]`, float64 `[2, H]`, in the members' order."""
        places = torch.tensor([self.place[number] for number in range(len(self.members))])
        return torch.stack(_tell(probabilities, labels))[:, places]

    def means(self, sums: torch.Tensor, rows: int) -> list[tuple[float, float]]:
        """Loss and accuracy of each head from what every worker summed over its share of `rows`."""
        self.group.sum_(sums)
        return list(zip(*(sums / rows).tolist(), strict=True))

    def scores(self, held_out: Mapping[str, Source], y: np.ndarray) -> list[tuple[float, float]]:
        """Loss and accuracy of each head on other rows, some at a time; `y` of all, features of the share."""
        labels = torch.tensor(y[self.group.share(len(y))])
        sums = torch.zeros(2, len(self.members), dtype=torch.float64)
        step = max(256, (1 << 24) // (len(self.members) * self.classes + self.theta[0].shape[1]))
        for first in range(0, len(labels), step):
            rows = slice(first, min(first + step, len(labels)))
            features = [held_out[view].block(rows) for view in self.views]
            sums += self.tell(self._forward(features), labels[rows])
        return self.means(sums, len(y))

    def weights(self, number: int) -> torch.Tensor:
        """A copy of the weights of member `number` as they are now, `[C, D + 1 padded]`."""
        view = self.views.index(self.members[number].view)
        first = self.place[number] * self.classes - self.columns[view].start
        return self.theta[view][first : first + self.classes].clone()

    def scorer(self, number: int, weights: torch.Tensor) -> Linear:
        """Member `number` with these weights, for features as they are stored."""
        member = self.members[number]
        source = self.sources[member.view]
        theta = weights.double().numpy() * member.lr
        return Linear(*source.standard.fold(theta[:, : source.width], theta[:, source.width]))


class _Targets:
    """The gradient of each head's loss with respect to its logits.

    All losses here have the gradient `(p * S - T) / n` for probabilities p: plain cross-entropy has S = 1, T
    the label; smoothing and class weights change S, T and n as `torch.nn.functional.cross_entropy` (and
    `binary_cross_entropy_with_logits` with `pos_weight`) defines them.
    """

    def __init__(self, y: np.ndarray, classes: int, members: Sequence[Member]) -> None:
        self.multi_label, self.classes = y.ndim == 2, classes
        smoothing = torch.tensor([member.label_smoothing for member in members])[:, None]  # [H, 1]
        weights = torch.stack([class_weights(y, classes, member.class_weight) for member in members])
        self.plain = bool((smoothing == 0).all() and (weights == 1).all())
        self.smoothing, self.weights = smoothing, weights  # [H, 1], [H, C]
        spread = (smoothing / classes)[:, :, None]
        # [H, C of the logit, C of the row's label]: what a row of that label is pulled to
        self.table = ((1 - smoothing[:, :, None]) * torch.eye(classes) + spread) * weights[:, None, :]
        self.table = self.table.transpose(1, 2).contiguous()
        self.mass = self.table.sum(1, keepdim=True)

    def batches(self, labels: torch.Tensor, sizes: int | list[int]) -> Sequence[torch.Tensor]:
        """Batches of these sizes, of rows with labels `[M]` or multi-hot `[M, C]`, as float32 `[C, B]`."""
        truth = labels.T if self.multi_label else torch.eye(self.classes).index_select(1, labels)
        batches: Sequence[torch.Tensor] = truth.float().split(sizes, 1)
        return batches

    def masses(self, labels: torch.Tensor, size: int) -> Sequence[float | torch.Tensor]:
        """What each batch's summed loss is divided by: a number, or with class weights `[H, 1, 1]`.

        Args:
            labels: of all rows of the batches, whichever worker has them.
        """
        if self.plain or self.multi_label:
            terms = self.classes if self.multi_label else 1
            whole, rest = divmod(len(labels), size)
            return [float(size * terms)] * whole + [float(rest * terms)] * (rest > 0)
        return [self.weights.index_select(1, part).sum(1)[:, None, None] for part in labels.split(size)]

    def error(
        self, probabilities: torch.Tensor, truth: torch.Tensor, mass: float | torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """The gradient `[H, C, B]` of the mean loss, and a factor that it has yet to be multiplied by."""
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


class _Book:
    """The history of one head, and its weights when it was best."""

    def __init__(self) -> None:
        self.history: list[Epoch] = []
        self.rank: tuple[float, float] | None = None
        self.best: torch.Tensor | None = None
        self.last: torch.Tensor | None = None
        self.best_epoch = 0
        self.stopped = False
        self.diverged = 0  # the epoch, or 0

    def enter(self, line: Epoch, weights: Callable[[], torch.Tensor], patience: int | None) -> None:
        """Note an epoch; a head that has stopped, or diverges, keeps what it had."""
        if self.stopped:
            return
        if not (math.isfinite(line.train_loss) and math.isfinite(line.validation_loss)):
            if self.best is None:
                raise HeadError(f"the loss diverged in epoch {line.epoch}", hint="use a smaller --lr")
            self.stopped, self.diverged = True, line.epoch
            return
        self.history.append(line)
        rank = (line.validation_accuracy, -line.validation_loss)
        self.last = weights()
        if self.rank is None or rank > self.rank:
            self.rank, self.best, self.best_epoch = rank, self.last, line.epoch
        self.stopped = patience is not None and line.epoch - self.best_epoch >= patience

    def close(self, scorer: Callable[[torch.Tensor], Linear]) -> Fit:
        assert self.best is not None and self.last is not None
        about = {"diverged_in_epoch": float(self.diverged)} if self.diverged else None
        return Fit(scorer(self.best), scorer(self.last), tuple(self.history), self.best_epoch, about)


def class_weights(y: np.ndarray, classes: int, kind: str | tuple[float, ...]) -> torch.Tensor:
    """`[C]`: single-label N / (C * rows); multi-label the negatives over the positives of each label."""
    if not isinstance(kind, str):
        return torch.tensor(kind, dtype=torch.float32)
    if kind == "none":
        return torch.ones(classes)
    counts = np.maximum(counts_of(y, classes), 1).astype(np.float64)
    weights = len(y) / (classes * counts) if y.ndim == 1 else np.maximum(len(y) - counts, 1) / counts
    return torch.tensor(weights, dtype=torch.float32)


def _tell(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss and right answers of probabilities `[H, C, B]`, float64 `[H]` each."""
    if labels.ndim == 1:
        true = probabilities.gather(1, labels.expand(len(probabilities), 1, -1))[:, 0]
        top = probabilities.amax(1)  # argmax, ten times faster where few classes are
        right = true == top
        if (
            torch.count_nonzero(probabilities == top[:, None]) > top.numel()
        ):  # argmax says the first of equals
            right = probabilities.argmax(1) == labels
        return -true.clamp_min(1e-15).log().sum(1, dtype=torch.float64), right.double().sum(1)
    has = labels.T > 0
    said = torch.where(has, probabilities, 1 - probabilities).clamp_min(1e-15)
    right = ((probabilities >= 0.5) == has).all(1)
    return -said.double().log().mean(1).sum(1), right.double().sum(1)


def _check(
    train: Mapping[str, np.ndarray],
    y: np.ndarray,
    validation: Mapping[str, np.ndarray],
    y_validation: np.ndarray,
    classes: int,
    members: Sequence[Member],
    course: Course,
    group: Group,
) -> None:
    if not members:
        raise HeadError("a stack of no heads")
    for name, value in (("--epochs", course.epochs), ("--batch-size", course.batch_size)):
        if value < 1:
            raise HeadError(f"{name} {value}: at least 1 is needed")
    for member in members:
        if not 0 < member.lr < math.inf:
            raise HeadError(f"--lr {member.lr}: a number above 0 is needed")
        if not 0 <= member.label_smoothing < 1:
            raise HeadError(f"--label-smoothing {member.label_smoothing}: 0 to below 1 is needed")
    for view in dict.fromkeys(member.view for member in members):
        check_rows(train[view], y, classes, group=group)
        check_rows(validation[view], y_validation, classes, split="validation", group=group)
        check_learnable(train[view], y, classes)
