"""The contrastive step for few labels: vectors of one class together, then a closed-form head on them.

The loss is the supervised contrastive one (Khosla et al. 2020, arXiv:2004.11362). SetFit trains the whole
encoder by pairs of labelled texts before a head is fitted (Tunstall et al. 2022, arXiv:2209.11055); here
only the blocks above the cut are trained, from cached states, for a few steps.

The loss of a text needs the vectors of all texts of the step. If these do not fit into one packed batch,
the vectors are made first, without gradients; then each batch is run again and takes the gradients of its
vectors (gradient caching, Gao et al. 2021, arXiv:2101.06983). The token budget changes memory and speed
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from featcache.backbone.memory_limit import fits
from featcache.backbone.packing import plan_batches
from featcache.errors import UsageError
from featcache.finetuning.loop import FEWER_BLOCKS, Tuner
from featcache.heads.closed_form import ridge

TEMPERATURE = 0.1
FAR = -1e9  # a similarity that no text has


def contrastive_loss(vectors: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean over the texts of how far their own class is from being the nearest.

    Of each text: minus the mean over the others of its class of the log probability that a softmax over the
    cosine similarities of all others gives them. Texts without another of their class count as others alone.

    Args:
        vectors: `[B, H]`; their length does not count.
        y: int64 `[B]`.
    """
    unit = functional.normalize(vectors.float(), dim=1)
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    logits = (unit @ unit.T / TEMPERATURE).masked_fill(itself, FAR)
    log_shares = logits.log_softmax(dim=1)
    same = (y[:, None] == y[None]) & ~itself
    counts = same.sum(dim=1)
    means = (log_shares * same).sum(dim=1) / counts.clamp(min=1)
    return -means.sum() / (counts > 0).sum().clamp(min=1)


class ContrastiveTuner(Tuner):
    """A training of `Recipe.steps` steps by `contrastive_loss`; arguments as of `Tuner`.

    A step takes the same number of texts of each class at random, all of them where there are so few. At the
    end ridge is fitted on the vectors of the train texts, and that is the head.

    Raises:
        UsageError: several labels a row.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.data.train.labels.ndim == 2:
            raise UsageError("--objective contrastive is for one label a row; these rows have several")
        self.per_epoch = self.steps = self.recipe.steps
        self.epoch_rows = self.steps * len(self._rows(0))

    def _rows(self, step: int) -> np.ndarray:
        """The texts of a step: as many of each class as `batch_size` has room for, two at least."""
        y, size = self.data.train.labels, self.recipe.batch_size
        if len(y) <= size:
            return np.arange(len(y))
        random = np.random.default_rng((self.seed % 2**64, step))
        classes = random.permutation(np.unique(y))[: max(size // 2, 2)]
        each = max(size // len(classes), 2)
        parts = [random.permutation(np.flatnonzero(y == one))[:each] for one in classes]
        return np.concatenate(parts)

    def _gradients(self, rows: np.ndarray) -> tuple[float, float]:
        """Gradients of the step's loss, and its value; how many texts are right is known at the end alone."""
        while True:
            self.suffix.clear()
            batches = plan_batches(self._lengths(rows), self.budget)
            loss = self._whole(rows, batches) if len(batches) == 1 else self._in_parts(rows, batches)
            if loss is not None:
                return loss, 0.0

    def _lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.data.train.texts.lengths[rows])

    def _classes(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.data.train.labels[rows]).to(self.suffix.device)

    def _vectors(self, rows: np.ndarray) -> torch.Tensor:
        return self.suffix.pooled(self.data.train.texts.batch(rows), self.pooler).float()

    def _fits(self, work: Callable[[np.ndarray], None], rows: np.ndarray) -> bool:
        """Do `work` on a batch; False if memory ran out: the budget is then half of what was tried."""
        tokens = int(self._lengths(rows).sum())
        if fits(work, rows, tokens, FEWER_BLOCKS):
            return True
        self.budget = max(tokens // 2, 1)
        self._tell(f"out of memory: going on with batches of {self.budget} tokens")
        return False

    def _whole(self, rows: np.ndarray, batches: Sequence[np.ndarray]) -> float | None:
        """The loss of texts that run together; None if memory ran out."""
        found: list[float] = []

        def work(batch: np.ndarray) -> None:
            loss = contrastive_loss(self._vectors(batch), self._classes(batch))
            loss.backward()
            self.suffix.collect()
            found.append(float(loss.detach()))

        return found[0] if self._fits(work, rows[batches[0]]) else None

    def _in_parts(self, rows: np.ndarray, batches: Sequence[np.ndarray]) -> float | None:
        """The same of texts in several batches, each of which runs twice."""
        vectors = torch.empty(len(rows), self.pooler.width, device=self.suffix.device)
        for batch in batches:

            def keep(some: np.ndarray, places: np.ndarray = batch) -> None:
                with torch.no_grad():
                    vectors[places] = self._vectors(some)

            if not self._fits(keep, rows[batch]):
                return None
        loss = contrastive_loss(vectors.requires_grad_(), self._classes(rows))
        loss.backward()
        gradients = vectors.grad
        assert gradients is not None
        for batch in batches:

            def backward(some: np.ndarray, places: np.ndarray = batch) -> None:
                self._vectors(some).backward(gradients[places])
                self.suffix.collect()

            if not self._fits(backward, rows[batch]):
                return None
        return float(loss.detach())

    def _end_epoch(self) -> str:
        """Fit the head on the vectors of the train texts, then score validation; the training is over."""
        y = self.data.train.labels
        x = self.features(self.data.train.texts)
        scorer = ridge(x, y, self.data.classes, alpha=float(self.pooler.width))
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(scorer.weight))
            self.head.bias.copy_(torch.from_numpy(scorer.bias))
        self.state.right = self.epoch_rows * float((scorer.logits(x).argmax(axis=1) == y).mean())
        return super()._end_epoch()
