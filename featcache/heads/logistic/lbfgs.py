"""L-BFGS that starts from a true Hessian instead of a multiple of the identity.

Nocedal & Wright, Numerical Optimization, algorithm 7.4, where H0 is the inverse of
`objective.Hessian`. Features of a Transformer are so correlated that plain L-BFGS, as SciPy has it,
needs hundreds of passes over them; with the Hessian it takes about ten, and three or four for each further
penalty of a path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.heads.logistic.objective import Hessian, Loss, Objective

MEMORY = 10  # steps that are remembered
PATIENCE = 30  # steps after which the Hessian is computed again, which costs about as much as they did
COARSE = 1e-7  # gradient at which float64 takes over: the error of float32 is about 1e-8
STUCK = 10  # float32 steps without a smaller gradient after which it takes over, too
ARMIJO, WOLFE = 1e-4, 0.9  # what a step must gain, and how far it may overshoot the lowest point
TRIALS = 20  # passes of one line search
NOISE = {torch.float32: 1e-6, torch.float64: 1e-13}  # relative rounding error of the objective


class CurvatureModel:
    """The curvature of an objective: a Hessian of its log loss, the penalty, and the last steps.

    It serves several penalties: the Hessian is without the penalty, and the steps can be corrected exactly.

    Args:
        rough: the first Hessian is from a sample of the rows.
        coarse: float32 is enough, also for the result.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, ridge: float, *, rough: bool, coarse: bool = False
    ) -> None:
        self.objective, self.ridge, self.coarse = objective, ridge, coarse
        self.refresh(theta, rough=rough)

    def refresh(self, theta: Tensor, *, rough: bool = False) -> None:
        self.hessian: Hessian = self.objective.hessian(theta, rough=rough, coarse=self.coarse)
        self.steps: list[tuple[Tensor, Tensor]] = []  # step, change of the gradient; both [K, D + 1]
        self.age = 0

    def use_penalty(self, ridge: float) -> None:
        for step, change in self.steps:
            change[:, :-1] += (ridge - self.ridge) * step[:, :-1]
        self.ridge = ridge
        if self.coarse:  # few steps a penalty: the first Hessian serves them all
            self.age = 0

    def learn(self, step: Tensor, change: Tensor) -> None:
        self.steps = [*self.steps[1 - MEMORY :], (step, change)]
        self.age += 1

    def direction(self, point: Loss) -> Tensor:
        """The step from `point` to the lowest point of the model, `[K, D + 1]`."""
        total = self.objective.total
        towards, applied = -point.gradient, []
        for step, change in reversed(self.steps):
            bend = total(step * change)
            inverse = torch.where(bend > 0, 1 / bend, 0.0)  # 0: a problem that has converged
            share = inverse * total(step * towards)
            towards = towards - share * change
            applied.append((step, change, inverse, share))
        towards = self._scaled(towards, point.curvature)
        for step, change, inverse, share in reversed(applied):
            towards = towards + step * (share - inverse * total(change * towards))
        return towards

    def _scaled(self, towards: Tensor, curvature: Tensor) -> Tensor:
        """The Hessian's inverse times `towards`, shortened as by it the last step should have been."""
        if not self.steps:
            return self._solve(curvature, towards)[0]
        step, change = self.steps[-1]
        found, expected = self._solve(curvature, towards, change)
        by_hessian, observed = self.objective.total(change * expected), self.objective.total(step * change)
        return found * torch.where(by_hessian > 0, observed / by_hessian, 1.0).clamp(1e-3, 1.0)

    def _solve(self, curvature: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        scale = curvature.clamp(min=1e-12).repeat(len(gradients), 1)
        if self.objective.independent:
            return self.hessian.solve(torch.cat(gradients), scale, self.ridge).chunk(len(gradients))
        # The mean over the classes changes the penalty alone. It is 0 at the start, and stays 0.
        centred = torch.cat([gradient - gradient.mean(0) for gradient in gradients])
        found = self.hessian.solve(centred, scale, self.ridge).chunk(len(gradients))
        return tuple(part - part.mean(0) for part in found)


@dataclass(frozen=True)
class Minimum:
    """The weights where the search ended, the objective there, and the number of steps."""

    theta: Tensor
    point: Loss
    iterations: int


def minimise(model: CurvatureModel, theta: Tensor, *, tolerance: float, steps: int) -> Minimum:
    """Search from `theta` until the gradient is at most `tolerance` and the weights stand still.

    Early steps read the features in float32; the last ones, and the result, are float64, unless the model is
    coarse. Weights stand still
    when the next step would change them by less than 30 * tolerance of their length: a small gradient alone
    says little about them where the penalty is weak.

    Workers that share the rows take the same steps: they decide by values that are the same bits for all,
    either summed over them or those of the first one.
    """
    objective, dtype, agreed = model.objective, torch.float32, model.objective.group.broadcast
    point, iteration = objective(theta, model.ridge, dtype), 0
    lowest, stuck = float("inf"), 0
    while True:
        if model.age >= PATIENCE:
            model.refresh(theta)
        direction = agreed(model.direction(point))
        largest = objective.largest(point.gradient)
        length = objective.total(theta.square()).clamp(min=1e-16)
        moved = agreed((objective.total(direction.square()) / length).sqrt())
        done = (largest <= tolerance) & (moved <= 30 * tolerance)
        stuck = 0 if float(largest.max()) < lowest else stuck + 1
        lowest = min(lowest, float(largest.max()))
        coarse_is_enough = dtype is torch.float32 and lowest > COARSE and stuck < STUCK
        found = None
        if iteration < steps and not done.all() and (coarse_is_enough or dtype is torch.float64):
            found = _line_search(model, theta, point, torch.where(done, 0.0, direction), dtype)
        if found is not None:
            step, after = found
            model.learn(step, after.gradient - point.gradient)
            theta, point, iteration = theta + step, after, iteration + 1
        elif dtype is torch.float32 and not model.coarse:
            dtype = torch.float64
            point = objective(theta, model.ridge, dtype)
        else:
            return Minimum(theta, point, iteration)


def _line_search(
    model: CurvatureModel, theta: Tensor, point: Loss, direction: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Loss] | None:
    """A step along `direction` that lowers each problem's objective, and the point it leads to.

    The function is convex: where the slope has changed too much, the secant through both slopes is 0 near the
    lowest point.
    """
    objective, agreed = model.objective, model.objective.group.broadcast
    slope = agreed(objective.total(point.gradient * direction))
    resting = slope == 0
    length = torch.ones_like(slope)
    for _ in range(TRIALS if dtype is torch.float64 else 5):
        step = length * direction
        after = objective(theta + step, model.ridge, dtype)
        slope_after = agreed(objective.total(after.gradient * direction))
        limit = point.value + ARMIJO * length * slope + NOISE[dtype] * point.value.abs()
        accepted = resting | ((after.value <= limit) & (slope_after <= -WOLFE * slope))
        if accepted.all():
            return step, after
        shorter = length * (slope / (slope - slope_after)).clamp(0.1, 0.7)
        length = torch.where(accepted, length, shorter)
    return None
