"""The objective of logistic regression over rows that are read slice by slice, and its curvature.

One pass over the features gives loss and gradient. Tensors `[K, D + 1]` hold the weights of K logits, with
the bias in the last column. All tensors are on the device of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from featcache.errors import HeadError
from featcache.heads.distributed import ALONE, ProcessGroup

NUMBERS_AT_ONCE = 2**21  # features of one pass that are read at once, 16 MiB in float64
GRAM_NUMBERS_AT_ONCE = 2**22  # likewise for the Gram matrix, 16 MiB in float32
TIMES_ON_GPU = 4  # as many at once there, where each kernel takes time to start; a guess until it is measured
SAMPLE = 4  # rows for each column that make a rough Gram matrix
GRAM_COLUMNS = 256  # columns of it that are computed at once, from the diagonal downwards


class FeatureSlices(Protocol):
    """Features `[N, D]` that can be read slice by slice: an array, a memory map, an HDF5 data set.

    Where slices are tensors, `device`, a `torch.device`, is theirs.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


def device_of(x: FeatureSlices) -> torch.device:
    """Where a solver computes that is given these features."""
    device = getattr(x, "device", None)  # arrays of numpy have one, too, which is a string
    return device if isinstance(device, torch.device) else torch.device("cpu")


def row_parts(
    x: FeatureSlices, numbers: int, dtype: torch.dtype, stride: int = 1, begin: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Every `stride`-th row from `begin` on, in parts `[B, D]` of about `numbers` numbers on their device.

    A part may overwrite the one before.
    """
    rows, width = x.shape
    device = device_of(x)
    numbers *= 1 if device.type == "cpu" else TIMES_ON_GPU
    step = max(1, min(numbers // width, rows))
    buffer: Tensor | None = None
    for first in range(begin, rows, step * stride):
        part = slice(first, min(first + step * stride, rows), stride)
        tensor = _tensor(x[part])
        if tensor.dtype != dtype:
            buffer = torch.empty(step, width, dtype=dtype, device=device) if buffer is None else buffer
            tensor = buffer[: len(tensor)].copy_(tensor)
        yield part, tensor


def _tensor(rows: Any) -> Tensor:
    """Rows as `FeatureSlices` gives them, as a tensor that shares their memory if it can."""
    if isinstance(rows, Tensor):
        return rows
    array = np.asarray(rows)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def logits(x: FeatureSlices, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """float32 `[N, C]` of features `[N, D]`, weights `[C, D]` and bias `[C]`."""
    w, b = (torch.from_numpy(each).float().to(device_of(x)) for each in (weight, bias))
    found = torch.empty(x.shape[0], len(b))
    for rows, part in row_parts(x, NUMBERS_AT_ONCE, torch.float32):
        found[rows] = torch.addmm(b, part, w.T)
    return found.numpy()


@dataclass(frozen=True)
class Loss:
    """The objective at one point.

    Attributes:
        value: float64 `[P, 1]`; P is K for independent labels, 1 for softmax.
        gradient: float64 `[K, D + 1]`.
        curvature: float64 `[K, 1]`, mean second derivative of the log loss by each logit.
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor


class Objective:
    """Weighted mean log loss of the logits `x W' + b`, plus `ridge / 2 * ||W||^2`.

    Sums over rows are taken by all workers of `group`, each over its share, and added up in float64.

    Args:
        x: features `[N, D]`; with other workers, this one's share of them.
        targets: int64 `[N]`, each of the K classes present, for softmax; uint8 `[N, K]` for K independent
            sigmoids, neither all 0 nor all 1.
        weight: float64 `[N]`, not negative; these two are of all rows.
        classes: K.
        group: the workers.
    """

    def __init__(
        self,
        x: FeatureSlices,
        targets: np.ndarray,
        weight: np.ndarray,
        classes: int,
        group: ProcessGroup = ALONE,
    ) -> None:
        share = group.share(len(weight))
        self.x, self.classes, self.group, self.first = x, classes, group, share.start
        self.rows, self.width = len(weight), x.shape[1]
        self.independent = targets.ndim == 2
        self.device = device_of(x)
        self.targets = torch.from_numpy(np.ascontiguousarray(targets[share])).to(self.device)
        if weight.strides == (0,):  # one number for all rows, which may be many million
            one = torch.full((1,), 1 / self.rows, dtype=torch.float64, device=self.device)
            self.weight = one.expand(len(self.targets))
        else:
            self.weight = torch.from_numpy((weight / weight.sum())[share]).to(self.device)

    def __call__(self, theta: Tensor, ridge: float, dtype: torch.dtype = torch.float64) -> Loss:
        """The objective at `theta`, in one pass that computes in `dtype` and adds up in float64.

        float32 is right to about 1e-7 of standardised features and several times as fast.
        """
        ridge = ridge if self.group.rank == 0 else 0.0  # the penalty counts once
        value = ridge / 2 * self.total(theta[:, :-1].square())
        gradient = torch.cat([ridge * theta[:, :-1], torch.zeros_like(theta[:, -1:])], dim=1)
        curvature = self._zeros(self.classes, 1)
        theta = theta.to(dtype)
        for rows, x in row_parts(self.x, NUMBERS_AT_ONCE, dtype):
            weight = self.weight[rows, None].to(dtype)
            loss, probabilities, truth = self._score(self._logits(x, theta), self.targets[rows])
            value += (loss * weight).sum(0)[:, None]
            error = (probabilities - truth).mul_(weight)
            gradient[:, :-1] += error.T @ x
            gradient[:, -1] += error.sum(0)
            curvature += (self._second_derivative(probabilities) * weight).sum(0)[:, None]
        self.group.sum_(value, gradient, curvature)
        return Loss(value, gradient, curvature)

    def start(self) -> Tensor:
        """The best point with no weights, `[K, D + 1]`: a bias that gives each class its share."""
        share = torch.zeros(self.classes, dtype=torch.float64)
        all_targets, weights = self.targets.cpu(), self.weight.cpu()  # a GPU adds up in any order
        if self.independent:
            pairs = zip(all_targets.split(NUMBERS_AT_ONCE), weights.split(NUMBERS_AT_ONCE), strict=True)
            for targets, weight in pairs:
                share += (targets * weight[:, None]).sum(0)
            self.group.sum_(share)
            bias = share.logit()
        else:
            self.group.sum_(share.index_add_(0, all_targets, weights))
            bias = share.log()
            bias -= bias.mean()
        bias = bias[:, None].to(self.device)
        return torch.cat([self._zeros(self.classes, self.width), bias], dim=1)

    def total(self, products: Tensor) -> Tensor:
        """Sum of `[K, ...]` over each problem, `[P, 1]`."""
        return products.sum(1, keepdim=True) if self.independent else products.sum().reshape(1, 1)

    def largest(self, gradient: Tensor) -> Tensor:
        """Largest absolute entry of `[K, ...]` in each problem, `[P, 1]`."""
        by_class = gradient.abs().amax(1, keepdim=True)
        return by_class if self.independent else by_class.amax(0, keepdim=True)

    def hessian(self, theta: Tensor, *, rough: bool = False, coarse: bool = False) -> Hessian:
        """Curvature of the loss at `theta`, up to one factor for each class.

        Args:
            rough: from a sample of the rows; enough where all have about the same weight.
            coarse: see `Hessian`.

        Raises:
            HeadError: features so large that their products overflow.
        """
        if self.rows <= self.width:
            return self._hessian_of_few_rows(theta, coarse)
        stride = max(1, self.rows // (SAMPLE * self.width)) if rough else 1
        gram, total, mass = self._zeros(self.width, self.width), self._zeros(self.width), self._zeros()
        begin = -self.first % stride  # the same rows, however many workers share them
        for rows, x in row_parts(self.x, GRAM_NUMBERS_AT_ONCE, torch.float32, stride, begin):
            weight = self._row_curvature(x, theta.float(), rows)
            weighted = x * weight[:, None]
            for i in range(0, self.width, GRAM_COLUMNS):
                gram[i:, i : i + GRAM_COLUMNS] += x[:, i:].T @ weighted[:, i : i + GRAM_COLUMNS]
            total += weighted.sum(0)
            mass += weight.sum()
        self.group.sum_(gram, total, mass)
        if not gram.isfinite().all():
            raise HeadError(
                "the features are so large that their squares overflow float32",
                hint="standardise them: mean 0, deviation 1",
            )
        mean = total / mass
        return Hessian(mean, gram.div_(mass).addr_(mean, mean, alpha=-1), coarse=coarse)

    def _hessian_of_few_rows(self, theta: Tensor, coarse: bool) -> Hessian:
        """The same from `[N, N]`, with all of `x`, which is smaller than `[D, D]`, in float64.

        Every worker takes all rows.
        """
        here = slice(0, self.x.shape[0])
        mine = _tensor(self.x[here]).double()
        weight = self.group.gather(self._row_curvature(mine, theta, here), self.rows)
        x = self.group.gather(mine, self.rows)
        weight = weight / weight.sum()
        mean = weight @ x
        x = (x - mean).mul_(weight.sqrt()[:, None])
        return Hessian(mean, x @ x.T, x, coarse=coarse)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def _row_curvature(self, x: Tensor, theta: Tensor, rows: slice) -> Tensor:
        """The curvature that each row adds, over all classes, `[B]`."""
        found = self._logits(x, theta)
        probabilities = found.sigmoid() if self.independent else found.softmax(1)
        return self._second_derivative(probabilities).sum(1) * self.weight[rows].to(x.dtype)

    def _logits(self, x: Tensor, theta: Tensor) -> Tensor:
        return torch.addmm(theta[:, -1], x, theta[:, :-1].T)

    def _score(self, found: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log loss `[B, P]`, probabilities `[B, K]` and true probabilities `[B, K]`."""
        if self.independent:
            truth = targets.to(found.dtype)
            loss = torch.nn.functional.softplus((1 - 2 * truth) * found)
            return loss, found.sigmoid(), truth
        log_probabilities = found.log_softmax(1)
        truth = torch.nn.functional.one_hot(targets, self.classes).to(found.dtype)
        return -log_probabilities.gather(1, targets[:, None]), log_probabilities.exp(), truth

    def _second_derivative(self, probabilities: Tensor) -> Tensor:
        """Of each row's loss by each logit, `[B, K]`.

        For softmax the Hessian by the logits is diag(p) - pp', which is 0 along (1, ..., 1). Its diagonal
        times K / (K - 1) is exact in the other directions where all classes are equally likely.
        """
        scale = 1 if self.independent else self.classes / (self.classes - 1)
        return probabilities * (1 - probabilities) * scale


class Hessian:
    """Curvature of the log loss: the covariance of the rows, weighted by their second derivatives.

    Args:
        mean: weighted mean of the rows, float64 `[D]`; relative to it, bias and weights are independent.
        gram: the covariance, float64 `[D, D]`, of which only the lower triangle is read; with `rows` their
            products `[N, N]`.
        rows: given where there are fewer rows than features: centred, times the root of their weight,
            float64 `[N, D]`.
        coarse: factors are float32, and those of one penalty serve its neighbours.
    """

    def __init__(
        self, mean: Tensor, gram: Tensor, rows: Tensor | None = None, *, coarse: bool = False
    ) -> None:
        self.mean, self.coarse = mean, coarse
        dtype = torch.float32 if coarse else torch.float64
        self.gram, self.rows = gram.to(dtype), None if rows is None else rows.to(dtype)
        self.factors: dict[float, Tensor] = {}  # by ratio of penalty and curvature, those of one ridge
        self.ridge = 0.0

    def solve(self, gradient: Tensor, scale: Tensor, ridge: float) -> Tensor:
        """About the Newton step (scale * covariance + ridge)^-1 gradient, `[K, D + 1]`.

        Args:
            gradient: `[K, D + 1]`.
            scale: mean second derivative of each class, `[K, 1]`. It is taken to the next half octave, or
                the ratio of penalty and curvature to the next power of 8, so that classes and steps share
                factors.
            ridge: curvature of the penalty.
        """
        if ridge != self.ridge:
            self.factors, self.ridge = self.factors if self.coarse else {}, ridge
        bias = gradient[:, -1:]
        centred = gradient[:, :-1] - bias * self.mean
        weight = torch.empty_like(centred)
        if self.coarse:
            used, ratios = scale[:, 0], (ridge / scale[:, 0]).log2().div(3).round().mul(3).exp2()
        else:
            used = scale[:, 0].log2().mul(2).round().div(2).exp2()
            ratios = ridge / used
        wanted = ratios.unique().tolist()
        self.factors = {ratio: found for ratio, found in self.factors.items() if ratio <= max(wanted)}
        for ratio in wanted:
            of_ratio = ratios == ratio
            weight[of_ratio] = self._solve_centred(centred[of_ratio], ratio) / used[of_ratio, None]
        return torch.cat([weight, bias / scale - weight @ self.mean[:, None]], dim=1)

    def _solve_centred(self, gradient: Tensor, ratio: float) -> Tensor:
        """(covariance + ratio)^-1 gradient."""
        factor = self.factors.get(ratio)
        if factor is None:
            factor = self.factors[ratio] = self._factor(ratio)
        right = gradient.T.to(factor.dtype)
        if self.rows is None:
            return _solve_factored(factor, right).T.to(gradient.dtype)
        # Woodbury: orthogonal to all rows, the penalty is the only curvature.
        along = _solve_factored(factor, self.rows @ right)
        return ((right - self.rows.T @ along) / ratio).T.to(gradient.dtype)

    def _factor(self, ratio: float) -> Tensor:
        """Cholesky factor; float32 products can make a singular covariance slightly negative."""
        matrix = self.gram.clone()
        diagonal = matrix.diagonal()
        rounding = 1e-7 * float(diagonal.mean())
        diagonal += ratio
        while True:
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not failed:
                return factor  # type: ignore[no-any-return]
            diagonal += rounding
            rounding *= 10


def _solve_factored(factor: Tensor, right: Tensor) -> Tensor:
    """(factor factor')^-1 right; of few columns 10 to 20 times as fast as `torch.cholesky_solve`."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)  # type: ignore[no-any-return]
