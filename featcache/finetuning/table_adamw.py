"""AdamW of a large embedding table on CPUs: a step updates only the rows that its texts read.

AdamW moves every row in every step: a row without a gradient decays, and its fading moments still move it. A
multilingual table has a quarter of a million rows, of which a step reads a few hundred, and to update all of
them takes longer than the rest of the step. Here a row is brought up to date when it is read: the steps that
it missed are made up for at once, with the learning rates that they had.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.adamw import adamw

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # the defaults of torch.optim.AdamW
FADED = 200  # steps without a gradient after which the mean of the gradients is a billionth of what it was
AT_ONCE = 1 << 16  # numbers that are brought up to date together: they stay in the processor's cache


class TableAdamW:
    """AdamW of one table; rows that are up to date are those of `torch.optim.AdamW`, to rounding.

    Args:
        master: what is trained, float32 `[V, H]` on the CPU; its gradient may be sparse.
        trained: what the model computes with: a rounded copy, or `master` itself.
        decay: weight decay.

    Attributes:
        part: the rows with a gradient; gradients are clipped here.
        state: by name, for checkpoints: the moments `exp_avg` and `exp_avg_sq`, float32 `[V, H]`; `done`, how
            many steps each row has made, int64 `[V]`; `rates`, the learning rate of each step, float64 `[S]`.
    """

    def __init__(self, master: nn.Parameter, trained: nn.Parameter, decay: float) -> None:
        self.master, self.trained, self.decay = master, trained, decay
        self.part = master
        self._rows: torch.Tensor | None = None
        self.state = {
            "exp_avg": torch.zeros_like(master, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
            "done": torch.zeros(len(master), dtype=torch.int64),
            "rates": torch.zeros(0, dtype=torch.float64),
        }
        self.restore(self.state)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Put `state` in place."""
        self.state = dict(state)
        # By the number of steps: the rate of the last one, and the logarithm of what decay left of a weight.
        self._rate = torch.cat([torch.zeros(1, dtype=torch.float64), state["rates"]])
        self._left = torch.log1p(-self.decay * self._rate).cumsum(0)

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return len(self.state["rates"])

    @torch.no_grad()
    def catch_up(self, rows: torch.Tensor | None = None) -> None:
        """Make up for the steps that rows have missed, in which their gradients were zero.

        Args:
            rows: int64 `[R]`, no row twice; None: all.
        """
        rows = torch.arange(len(self.master)) if rows is None else rows
        late = rows[self.state["done"][rows] < self.steps]
        for some in late.split(max(AT_ONCE // self.master.shape[1], 1)):
            self._catch_up(some)

    def _catch_up(self, rows: torch.Tensor) -> None:
        since = self.state["done"][rows]
        missed = (self.steps - since)[:, None]
        mean, square = self.state["exp_avg"][rows], self.state["exp_avg_sq"][rows]
        weights = self.master[rows] * (self._left[-1] - self._left[since]).exp().float()[:, None]
        if square.any():
            moving = mean.any(dim=1)
            if moving.any():
                weights[moving] -= self._moves(mean[moving], square[moving], since[moving])
            kept = (BETA1 ** missed.double()).masked_fill(missed >= FADED, 0.0)
            self.state["exp_avg"][rows] = mean * kept.float()
            self.state["exp_avg_sq"][rows] = square * (BETA2 ** missed.double()).float()
        self._put(rows, weights)

    def _moves(self, mean: torch.Tensor, square: torch.Tensor, since: torch.Tensor) -> torch.Tensor:
        """How far weights have moved by the moments `[R, H]` that they had after the step `since` `[R]`.

        Step j moves a weight by `rate * m / (1 - BETA1^j) / (sqrt(v / (1 - BETA2^j)) + EPS)`; by then both
        moments have faded, and the decay of each later step shortens the move.
        """
        order = since.argsort()  # those that missed most come first
        mean, root, since = mean[order], square[order].sqrt(), since[order]
        missed = self.steps - since
        ago = torch.arange(1, min(int(missed[0]), FADED) + 1)[:, None]
        step = (since + ago).clamp(max=self.steps)
        sizes = self._rate[step] * (self._left[-1] - self._left[step]).exp()
        sizes *= BETA1 ** ago.double() / (1 - BETA1 ** step.double())
        scales = BETA2 ** (ago.double() / 2) / (1 - BETA2 ** step.double()).sqrt()
        counts = (missed >= ago).sum(1).tolist()
        moved, eps = torch.zeros_like(mean), torch.tensor(EPS)
        for count, size, scale in zip(counts, sizes.float(), scales.float(), strict=True):
            spread = torch.addcmul(eps, root[:count], scale[:count, None])
            moved[:count].addcmul_(mean[:count] / spread, size[:count, None])
        return moved[order.argsort()]

    def take_gradient(self) -> None:
        """Let `part` be the rows that have a gradient: all, where it is not sparse (as of tied weights)."""
        self._rows, self.part = None, self.master
        gradient = self.master.grad
        if gradient is None:
            return
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            self._rows = gradient.indices()[0]
        self.catch_up(self._rows)
        if self._rows is not None:
            self.part = nn.Parameter(self.master.detach()[self._rows])
            self.part.grad = gradient.values()

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Make a step of AdamW with `part`; as in torch, none without a gradient."""
        if self.part.grad is None:
            return
        rows = slice(None) if self._rows is None else self._rows
        mean, square = self.state["exp_avg"][rows], self.state["exp_avg_sq"][rows]
        adamw(
            [self.part], [self.part.grad], [mean], [square], [], [torch.tensor(float(self.steps))],
            fused=True, amsgrad=False, beta1=BETA1, beta2=BETA2, lr=rate, weight_decay=self.decay,
            eps=EPS, maximize=False,
        )  # fmt: skip
        rates = torch.cat([self.state["rates"], torch.tensor([rate], dtype=torch.float64)])
        self.restore(self.state | {"rates": rates})
        if self._rows is not None:
            self.state["exp_avg"][rows], self.state["exp_avg_sq"][rows] = mean, square
        self._put(rows, self.part)
        self.part = self.master

    def _put(self, rows: torch.Tensor | slice, weights: torch.Tensor) -> None:
        """Set rows, which are then up to date."""
        if weights is not self.master:
            self.master[rows] = weights
        if self.trained is not self.master:
            self.trained[rows] = weights.to(self.trained.dtype)
        self.state["done"][rows] = self.steps
