"""The training loop above the cut: AdamW over packed batches; the best epoch by validation is kept.

A step takes `batch_size` texts at random. They are sorted by length and run in packed batches under a
token budget, and the gradients of the batches add up: the budget decides on memory and speed only, never on
the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from featcache.backbone.memory_limit import fits, smaller_batches
from featcache.backbone.packing import plan_batches
from featcache.backbone.pooler import Pooler
from featcache.errors import HeadError
from featcache.finetuning.checkpoint import Checkpoint, CheckpointFolder
from featcache.finetuning.optimizer import PartOptimizer
from featcache.finetuning.recipe import Recipe
from featcache.finetuning.suffix import Suffix
from featcache.finetuning.tuning import (
    TrainedWeights,
    TrainingState,
    TrainingStep,
    TrainingTexts,
    Tuned,
    TuningData,
)
from featcache.heads.fit import Epoch, schedule_factor
from featcache.heads.stack_loss import class_weights
from featcache.system.documents import parse_document

FEWER_BLOCKS = "use a smaller --max-length, or train fewer blocks"
CURVE_POINTS = 200


class Diverged(Exception):
    """The loss or a gradient is NaN or infinite."""


class Tuner:
    """One training.

    Args:
        suffix: what is trained, fresh.
        pooler: makes a vector of token states; on the device of `suffix`.
        budget: tokens in one packed batch.
        checkpoints: where checkpoints are kept; None: nowhere.
        on_step: called after each step and each epoch, and with messages.
    """

    def __init__(
        self,
        suffix: Suffix,
        pooler: Pooler,
        data: TuningData,
        recipe: Recipe,
        *,
        seed: int,
        budget: int,
        checkpoints: CheckpointFolder | None = None,
        on_step: Callable[[TrainingStep], None] = lambda _: None,
    ) -> None:
        self.suffix, self.pooler, self.data, self.recipe, self.seed = suffix, pooler, data, recipe, seed
        self.budget, self.checkpoints, self.on_step = budget, checkpoints, on_step
        labels = data.train.labels
        self.head = _head(data.classes, pooler.width, seed).to(suffix.device)
        self.class_weight = class_weights(labels, data.classes, recipe.class_weight).to(suffix.device)
        self.per_epoch = math.ceil(len(labels) / recipe.batch_size)
        self.steps, self.epoch_rows = self.per_epoch * recipe.epochs, len(labels)
        self.optimizer = PartOptimizer(suffix, self.head, recipe)
        self.named = self.optimizer.named
        self.state = TrainingState()
        self.best: TrainedWeights | None = None
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def run(self, *, resume: bool = False) -> Tuned:
        """Train to the end, from the checkpoint of this training if `resume` is set and there is one.

        Raises:
            HeadError: the loss became NaN before the first epoch was done.
            BackboneError: a single text does not fit in memory.
        """
        torch.manual_seed(self.seed)
        if resume:
            self._load()
        elif self.checkpoints:
            self.checkpoints.discard()
        stopped = ""
        while self.state.step < self.steps and not stopped:
            try:
                self._step()
            except Diverged as error:
                where = f"{error} in step {self.state.step + 1} of {self.steps}"
                if self.best is None:
                    raise HeadError(
                        f"{where}, before the first epoch was done",
                        hint="use a smaller --lr, a longer --warmup, or --dtype float32",
                    ) from None
                self._tell(f"{where}: the best epoch is kept")
                stopped = where
                break
            if self.state.step % self.per_epoch == 0:
                stopped = self._end_epoch()
            elif self.checkpoints and self.checkpoints.due:
                self._save()
        assert self.best is not None
        return Tuned(self.best, self._weights(), self.state, self.budget, stopped)

    def features(self, texts: TrainingTexts, weights: TrainedWeights | None = None) -> np.ndarray:
        """One vector a text, float32 `[N, D]`.

        Args:
            weights: put in place first, where they stay; None: the weights as they are.
        """
        if weights is not None:
            self.optimizer.catch_up()  # nothing is left to be done to the weights that are put in place
            self.suffix.put({name: value.float() for name, value in weights.part.items()})
        self.suffix.train(False)
        found = np.empty((len(texts.lengths), self.pooler.width), np.float32)

        def pool(rows: np.ndarray) -> None:
            with torch.no_grad():
                found[rows] = self.suffix.pooled(texts.batch(rows), self.pooler).cpu().numpy()

        self.budget = smaller_batches(np.asarray(texts.lengths), self.budget, pool)
        return found

    def _tell(self, text: str) -> None:
        self.on_step(TrainingStep(self.state.step, self.steps, text=text))

    # -- a step -----------------------------------------------------------------------------------

    def _step(self) -> None:
        began = time.perf_counter()
        rows = self._rows(self.state.step)
        loss, right = self._gradients(rows)
        if not math.isfinite(loss):
            raise Diverged("the loss became NaN or infinite")
        self._update()
        state = self.state
        state.step += 1
        state.loss += loss * len(rows)
        state.right += right
        state.tokens += int(np.asarray(self.data.train.texts.lengths)[rows].sum())
        state.seconds += time.perf_counter() - began
        if state.step % max(self.steps // CURVE_POINTS, 1) == 0:
            state.curve.append((state.step, loss))
        self.on_step(TrainingStep(state.step, self.steps, loss))

    def _rows(self, step: int) -> np.ndarray:
        """The texts of a step: every epoch takes all rows once, in an order of its own."""
        epoch, within = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            random = np.random.default_rng((self.seed % 2**64, epoch))
            self._order = (epoch, random.permutation(len(self.data.train.labels)))
        size = self.recipe.batch_size
        return self._order[1][within * size : (within + 1) * size]

    def _gradients(self, rows: np.ndarray) -> tuple[float, float]:
        """Gradients of the step's mean loss, its value, and how many texts were right.

        If memory runs out, the step is repeated with half the budget.
        """
        texts = self.data.train.texts
        self.suffix.train(True)
        y = torch.from_numpy(self.data.train.labels[rows]).to(self.suffix.device)
        # The weights of the rows in the mean, as torch's cross_entropy has them.
        total = float(self.class_weight[y].sum()) if y.dim() == 1 else float(len(y))
        lengths = np.asarray(texts.lengths)[rows]
        while True:
            self.suffix.clear()
            self.head.zero_grad()
            sums = torch.zeros(2, device=self.suffix.device)

            def work(batch: np.ndarray, sums: torch.Tensor = sums) -> None:
                logits = self.head(self.suffix.pooled(texts.batch(rows[batch]), self.pooler))
                loss = self._loss(logits, y[batch]) / total
                loss.backward()
                self.suffix.collect()
                sums[0] += loss.detach()
                sums[1] += _right(logits.detach(), y[batch])

            for batch in plan_batches(lengths, self.budget):
                tokens = int(lengths[batch].sum())
                if not fits(work, batch, tokens, FEWER_BLOCKS):
                    self.budget = max(tokens // 2, 1)
                    self._tell(f"out of memory: going on with batches of {self.budget} tokens")
                    break
            else:
                loss, right = sums.tolist()
                return loss, right

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
        if not bool(torch.isfinite(self.optimizer.clip())):
            raise Diverged("a gradient became NaN or infinite")
        recipe = self.recipe
        self.optimizer.step(schedule_factor(self.state.step, self.steps, recipe.warmup, recipe.schedule))

    # -- epochs -----------------------------------------------------------------------------------

    def _end_epoch(self) -> str:
        """Score validation, keep the weights if they are the best; why to stop, or nothing."""
        state, rows = self.state, self.epoch_rows
        self.optimizer.catch_up()
        loss, accuracy = self._validate()
        number = state.step // self.per_epoch
        line = Epoch(number, state.loss / rows, state.right / rows, loss, accuracy)
        state.history.append(line)
        state.loss = state.right = 0.0
        if not math.isfinite(loss):
            if self.best is None:
                raise HeadError("the validation loss is NaN after the first epoch", hint="use a smaller --lr")
            return f"the validation loss became NaN in epoch {number}"
        better = self._is_best(line)
        if better:
            state.best_epoch = number
            self.best = self._weights()
        self._save(best=better)
        self.on_step(TrainingStep(state.step, self.steps, line.train_loss, line))
        patience = self.recipe.patience
        if patience is not None and number - state.best_epoch >= patience and number < self.recipe.epochs:
            return f"no better validation score in {patience} epochs"
        return ""

    def _validate(self) -> tuple[float, float]:
        """Mean loss and accuracy on validation; labels count as they are, without weights or smoothing."""
        held_out = self.data.validation
        with torch.no_grad():
            x = torch.from_numpy(self.features(held_out.texts)).to(self.suffix.device)
            logits, y = self.head(x), torch.from_numpy(held_out.labels).to(self.suffix.device)
            plain = functional.cross_entropy if y.dim() == 1 else functional.binary_cross_entropy_with_logits
            loss = float(plain(logits, y if y.dim() == 1 else y.float()))
        return loss, float(_right(logits, y)) / len(y)

    def _is_best(self, line: Epoch) -> bool:
        """Higher accuracy, then lower loss, than every epoch before."""
        score = (line.validation_accuracy, -line.validation_loss)
        before = self.state.history[:-1]
        return all(score > (each.validation_accuracy, -each.validation_loss) for each in before)

    def _weights(self) -> TrainedWeights:
        def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: value.detach().cpu().clone() for name, value in tensors.items()}

        self.optimizer.catch_up()
        return TrainedWeights(copied(self.suffix.trained), copied(dict(self.head.named_parameters())))

    # -- checkpoints ------------------------------------------------------------------------------

    def _save(self, *, best: bool = False) -> None:
        if self.checkpoints is None:
            return
        tensors: dict[str, Mapping[str, torch.Tensor]] = {
            "weights": self.named,
            "moments": self.optimizer.state(),
            "dice": {"state": torch.get_rng_state()},
        }
        if best and self.best:
            head = {f"head.{name}": value for name, value in self.best.head.items()}
            tensors["best"] = {**self.best.part, **head}
        self.checkpoints.save(tensors, asdict(self.state), keep="best")

    def _load(self) -> None:
        """Go on from the checkpoint, if there is one."""
        checkpoint = self.checkpoints.load() if self.checkpoints else None
        if self.checkpoints is None or checkpoint is None:
            return
        try:
            self._take(checkpoint)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise HeadError(
                f"the checkpoint in {self.checkpoints.path} does not fit this training: {error}",
                hint="remove that folder; the training then starts again",
            ) from error

    def _take(self, checkpoint: Checkpoint) -> None:
        """Put weights, moments, state and the random generator where they were."""
        tensors = checkpoint.tensors
        self.state = parse_document(TrainingState, checkpoint.state, "its state", ValueError)
        if not 0 <= self.state.step <= self.steps or bool(self.state.history) != ("best" in tensors):
            raise ValueError(f"its state: step {self.state.step} of {self.steps}")
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors["weights"][name])
        self.suffix.publish()
        self.optimizer.restore(tensors["moments"], self.state.step)
        torch.set_rng_state(tensors["dice"]["state"])
        if best := tensors.get("best"):
            own = {name: value for name, value in best.items() if name in self.suffix.masters}
            head = {name.removeprefix("head."): value for name, value in best.items() if name not in own}
            self.best = TrainedWeights(own, head)
        self._tell(f"going on from step {self.state.step} of {self.steps}")


def _head(classes: int, width: int, seed: int) -> nn.Linear:
    """A linear layer initialised as in transformers: weights from N(0, 0.02), bias 0."""
    head = nn.Linear(width, classes)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, 0.02, generator=random)
        head.bias.zero_()
    return head


def _right(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How many rows have all their labels right."""
    if y.dim() == 1:
        return (logits.argmax(1) == y).sum().float()
    return ((logits > 0) == y.bool()).all(1).sum().float()
