"""The training loop above the cut: AdamW over packed batches, the best epoch by validation kept.

A step takes `batch_size` texts at random. They are sorted by length and run in packed batches under a
token budget, whose gradients add up: the budget decides on memory and speed, never on the result.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from featcache.backbone.memory_limit import fits, smaller_batches
from featcache.backbone.model import TokenBatch
from featcache.backbone.packing import plan_batches
from featcache.errors import HeadError
from featcache.finetuning.checkpoint import discard_checkpoint, load_checkpoint, save_checkpoint
from featcache.finetuning.recipe import Recipe
from featcache.finetuning.suffix import StateBatch, Suffix
from featcache.heads.fit import Epoch, schedule_factor
from featcache.heads.linear_stack import class_weights

FEWER_BLOCKS = "use a smaller --max-length, or train fewer blocks"
SAVE_EVERY = 60.0  # seconds between checkpoints within an epoch, and no more than a twentieth of the time


@dataclass(frozen=True)
class Step:
    """One step of the training, for whoever draws it.

    Attributes:
        step, steps: of all epochs.
        loss: of this step's texts.
        line: the epoch's line where the step was its last.
        text: something to say instead.
    """

    step: int
    steps: int
    loss: float = float("nan")
    line: Epoch | None = None
    text: str = ""


class Source(Protocol):
    """Texts of a split as what goes into the trained part: states at the cut, or tokens."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 `[N]`."""

    def batch(self, rows: np.ndarray) -> StateBatch | TokenBatch:
        """Some texts, end to end in that order."""


@dataclass
class Weights:
    """The trained part and the head at one moment, on the CPU.

    Attributes:
        part: by the parameter's name in the model, in the dtype it computes with.
        head: float32 `weight` `[C, H]` and `bias` `[C]`.
    """

    part: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]


@dataclass
class Tuned:
    """What `tune` returns: weights after the best epoch and at the end, and the history."""

    best: Weights
    last: Weights
    history: list[Epoch]
    best_epoch: int
    curve: list[tuple[int, float]]
    seconds: float
    tokens: int
    steps: int
    batch_tokens: int
    stopped: str = ""


@dataclass
class _Place:
    """Where the training stands, all of it JSON; the sums are of the epoch so far."""

    step: int = 0
    loss: float = 0.0
    right: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)


class Diverged(Exception):
    """The loss or a gradient is NaN or infinite."""


class Tuner:
    """One training.

    Args:
        suffix: what is trained, fresh.
        pooling: of the token states, a key of `POOLINGS`.
        train, held_out: texts and labels: int64 `[N]`, or multi-hot uint8 `[N, C]`.
        classes: C.
        budget: tokens in one packed batch.
        folder: of the checkpoint; None: none is kept.
        save_every: seconds between checkpoints within an epoch.
    """

    def __init__(
        self,
        suffix: Suffix,
        pooling: str,
        train: tuple[Source, np.ndarray],
        held_out: tuple[Source, np.ndarray],
        classes: int,
        recipe: Recipe,
        *,
        seed: int,
        budget: int,
        folder: Path | None = None,
        report: Callable[[Step], None] = lambda _: None,
        save_every: float = SAVE_EVERY,
    ) -> None:
        self.suffix, self.pooling, self.recipe, self.seed = suffix, pooling, recipe, seed
        self.train, self.held_out = train, held_out
        self.budget, self.folder, self.report, self.save_every = budget, folder, report, save_every
        self.head = _head(classes, suffix.width, seed).to(suffix.device)
        self.class_weight = class_weights(train[1], classes, recipe.class_weight).to(suffix.device)
        self.per_epoch = math.ceil(len(train[1]) / recipe.batch_size)
        self.steps = self.per_epoch * recipe.epochs
        self.named = {**suffix.masters, **{f"head.{name}": p for name, p in self.head.named_parameters()}}
        self.optimizer = torch.optim.AdamW(self._groups(), lr=recipe.lr, fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.place = _Place()
        self.best: Weights | None = None
        self.files: dict[str, str] = {}
        self._saved = time.perf_counter()
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def run(self, *, resume: bool = False) -> Tuned:
        """Train to the end, or go on where a checkpoint of this training stands.

        Raises:
            HeadError: the loss became NaN before the first epoch was done.
            BackboneError: a single text does not fit in memory.
        """
        torch.manual_seed(self.seed)
        if resume:
            self._load()
        elif self.folder:
            discard_checkpoint(self.folder)
        stopped = ""
        while self.place.step < self.steps and not stopped:
            try:
                self._step()
            except Diverged as error:
                stopped = f"{error} in step {self.place.step + 1} of {self.steps}"
                if self.best is None:
                    raise HeadError(
                        f"{stopped}, before the first epoch was done",
                        hint="use a smaller --lr, a longer --warmup, or --dtype float32",
                    ) from None
                self.report(Step(self.place.step, self.steps, text=f"{stopped}: the best epoch is kept"))
                break
            if self.place.step % self.per_epoch == 0:
                stopped = self._end_epoch()
            elif time.perf_counter() - self._saved > self.save_every:
                self._save()
        assert self.best is not None
        return self._tuned(stopped)

    def features(self, source: Source, weights: Weights | None = None) -> np.ndarray:
        """One vector a text, float32 `[N, H]`, by the weights as they are, or by others, which then stay."""
        if weights is not None:
            self.suffix.put({name: value.float() for name, value in weights.part.items()})
        self.suffix.train(False)
        found = np.empty((len(source.lengths), self.suffix.width), np.float32)

        def pool(rows: np.ndarray) -> None:
            with torch.no_grad():
                found[rows] = self.suffix.pooled(source.batch(rows), self.pooling).cpu().numpy()

        self.budget = smaller_batches(np.asarray(source.lengths), self.budget, pool)
        return found

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by rate and by whether they decay."""
        recipe = self.recipe
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named.items():
            own = name in self.suffix.masters
            rate = recipe.lr * recipe.layer_decay ** self.suffix.depth(name) if own else recipe.head_lr
            decay = recipe.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()
        ]

    # -- a step -----------------------------------------------------------------------------------

    def _step(self) -> None:
        began = time.perf_counter()
        rows = self._rows(self.place.step)
        loss, right = self._gradients(rows)
        if not math.isfinite(loss):
            raise Diverged("the loss became NaN or infinite")
        self._update()
        place = self.place
        place.step += 1
        place.loss += loss * len(rows)
        place.right += right
        place.tokens += int(np.asarray(self.train[0].lengths)[rows].sum())
        place.seconds += time.perf_counter() - began
        if place.step % max(self.steps // 200, 1) == 0:
            place.curve.append((place.step, loss))
        self.report(Step(place.step, self.steps, loss))

    def _rows(self, step: int) -> np.ndarray:
        """The texts of a step: every epoch takes all rows once, in an order of its own."""
        epoch, within = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            dice = np.random.default_rng((self.seed, epoch))
            self._order = (epoch, dice.permutation(len(self.train[1])))
        size = self.recipe.batch_size
        return self._order[1][within * size : (within + 1) * size]

    def _gradients(self, rows: np.ndarray) -> tuple[float, float]:
        """Gradients of the step's mean loss, its value, and how many texts were right.

        Where memory runs out, the step begins anew with half the budget.
        """
        source, labels = self.train
        self.suffix.train(True)
        y = torch.from_numpy(labels[rows]).to(self.suffix.device)
        total = float(self._row_weights(y).sum())
        lengths = np.asarray(source.lengths)[rows]
        while True:
            self.suffix.clear()
            self.head.zero_grad()
            sums = [torch.zeros((), device=self.suffix.device) for _ in range(2)]

            def work(batch: np.ndarray, sums: list[torch.Tensor] = sums) -> None:
                logits = self.head(self.suffix.pooled(source.batch(rows[batch]), self.pooling))
                loss = self._loss(logits, y[batch]) / total
                loss.backward()
                self.suffix.collect()
                sums[0] += loss.detach()
                sums[1] += _right(logits.detach(), y[batch])

            for batch in plan_batches(lengths, self.budget):
                if not fits(work, batch, int(lengths[batch].sum()), FEWER_BLOCKS):
                    self.budget = max(int(lengths[batch].sum()) // 2, 1)
                    text = f"out of memory: going on with batches of {self.budget} tokens"
                    self.report(Step(self.place.step, self.steps, text=text))
                    break
            else:
                return float(sums[0]), float(sums[1])

    def _row_weights(self, y: torch.Tensor) -> torch.Tensor:
        """What each row's loss counts in the mean, as torch's cross_entropy has it."""
        return self.class_weight[y] if y.dim() == 1 else torch.ones(len(y))

    def _loss(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The sum over the rows of cross-entropy, or of the mean binary cross-entropy of their labels."""
        smooth = self.recipe.label_smoothing
        if y.dim() == 1:
            return functional.cross_entropy(
                logits, y, weight=self.class_weight, label_smoothing=smooth, reduction="sum"
            )
        target = y.float() * (1 - smooth) + smooth / 2
        one = functional.binary_cross_entropy_with_logits(
            logits, target, pos_weight=self.class_weight, reduction="sum"
        )
        return one / logits.shape[1]

    def _update(self) -> None:
        parameters = list(self.named.values())
        longest = self.recipe.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, longest)
        if not bool(torch.isfinite(norm)):
            raise Diverged("a gradient became NaN or infinite")
        factor = schedule_factor(self.place.step, self.steps, self.recipe.warmup, self.recipe.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.suffix.publish()

    # -- epochs -----------------------------------------------------------------------------------

    def _end_epoch(self) -> str:
        """Score validation, keep what is best; why to stop, if at all."""
        place, rows = self.place, len(self.train[1])
        source, labels = self.held_out
        with torch.no_grad():
            x = torch.from_numpy(self.features(source)).to(self.suffix.device)
            logits, y = self.head(x), torch.from_numpy(labels).to(self.suffix.device)
            plain = functional.cross_entropy if y.dim() == 1 else functional.binary_cross_entropy_with_logits
            loss = float(plain(logits, y if y.dim() == 1 else y.float()))
        accuracy = float(_right(logits, y)) / len(y)
        number = place.step // self.per_epoch
        line = Epoch(number, place.loss / rows, place.right / rows, loss, accuracy)
        place.history.append(dataclasses.asdict(line))
        place.loss = place.right = 0.0
        if not math.isfinite(loss):
            if self.best is None:
                raise HeadError("the validation loss is NaN after the first epoch", hint="use a smaller --lr")
            return f"the validation loss became NaN in epoch {number}"
        better = self._is_best(line)
        if better:
            place.best_epoch = number
            self.best = self._weights()
        self._save(best=better)
        self.report(Step(place.step, self.steps, line.train_loss, line))
        patience = self.recipe.patience
        if patience is not None and number - place.best_epoch >= patience and number < self.recipe.epochs:
            return f"no better validation score in {patience} epochs"
        return ""

    def _is_best(self, line: Epoch) -> bool:
        """Higher accuracy, then lower loss, than every epoch before."""
        score = (line.validation_accuracy, -line.validation_loss)
        before = [(each["validation_accuracy"], -each["validation_loss"]) for each in self.place.history[:-1]]
        return all(score > other for other in before)

    def _weights(self) -> Weights:
        def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: value.detach().cpu().clone() for name, value in tensors.items()}

        return Weights(copied(self.suffix.trained), copied(dict(self.head.named_parameters())))

    def _tuned(self, stopped: str) -> Tuned:
        assert self.best is not None
        place = self.place
        return Tuned(
            self.best, self._weights(), [Epoch(**line) for line in place.history], place.best_epoch,
            place.curve, place.seconds, place.tokens, place.step, self.budget, stopped,
        )  # fmt: skip

    # -- checkpoints ------------------------------------------------------------------------------

    def _save(self, *, best: bool = False) -> None:
        if self.folder is None:
            return
        began = time.perf_counter()
        moments = {
            f"{name}:{kind}": self.optimizer.state[parameter][kind]
            for name, parameter in self.named.items()
            if parameter in self.optimizer.state
            for kind in ("exp_avg", "exp_avg_sq")
        }
        parts: dict[str, Mapping[str, torch.Tensor]] = {
            "weights": self.named, "moments": moments, "dice": {"state": torch.get_rng_state()},
        }  # fmt: skip
        if best and self.best:
            own = {f"head.{name}": value for name, value in self.best.head.items()}
            parts["best"] = {**self.best.part, **own}
        note = dataclasses.asdict(self.place)
        kept = {"best": self.files["best"]} if "best" in self.files else {}
        self.files = save_checkpoint(self.folder, parts, note, kept)
        took = time.perf_counter() - began
        self._saved = time.perf_counter()
        self.save_every = max(self.save_every, 20 * took if self.save_every else 0.0)

    def _load(self) -> None:
        """Take up a checkpoint where there is one."""
        found = load_checkpoint(self.folder) if self.folder else None
        if found is None:
            return
        checkpoint, self.files = found
        self.place = _Place(**checkpoint.note)
        self.place.curve = [(int(step), float(loss)) for step, loss in self.place.curve]
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(checkpoint.parts["weights"][name])
        self.suffix.publish()
        moments = checkpoint.parts["moments"]
        for name, parameter in self.named.items():
            if f"{name}:exp_avg" in moments:
                state = {
                    kind: moments[f"{name}:{kind}"].to(parameter.device) for kind in ("exp_avg", "exp_avg_sq")
                }
                step = torch.tensor(float(self.place.step), device=parameter.device)
                self.optimizer.state[parameter] = {"step": step, **state}
        torch.set_rng_state(checkpoint.parts["dice"]["state"])
        if best := checkpoint.parts.get("best"):
            own = {name: value for name, value in best.items() if name in self.suffix.masters}
            head = {name[5:]: value for name, value in best.items() if name not in self.suffix.masters}
            self.best = Weights(own, head)
        text = f"going on from step {self.place.step} of {self.steps}"
        self.report(Step(self.place.step, self.steps, text=text))


def _head(classes: int, width: int, seed: int) -> nn.Linear:
    """A linear layer as transformers begins one: weights from N(0, 0.02), no bias."""
    head = nn.Linear(width, classes)
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, 0.02, generator=dice)
        head.bias.zero_()
    return head


def _right(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How many rows have all their labels right."""
    if y.dim() == 1:
        return (logits.argmax(1) == y).sum().float()
    return ((logits > 0) == y.bool()).all(1).sum().float()
