"""The heads by name, each fitted on train rows and chosen on validation rows: one function a kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featcache.errors import UsageError
from featcache.heads import closed_form
from featcache.heads.attentive.fit import fit_attentive
from featcache.heads.distributed import ALONE, ProcessGroup
from featcache.heads.features import (
    LabelledFeatures,
    Standard,
    WatchedRows,
    check_rows,
    check_splits,
    standardised_rows,
)
from featcache.heads.fit import Fit, Member, OnEpoch, check_settings, divergence
from featcache.heads.lexical.fit import fit_lexical
from featcache.heads.mlp import fit_mlp
from featcache.heads.row_weights import all_weights, balanced_weights
from featcache.heads.scorers import Linear, Scorer
from featcache.settings import HeadSettings
from featcache.system.progress import OnProgress, Progress, ignore
from featcache.system.sharded_array import JoinedColumns

if TYPE_CHECKING:
    import torch

    from featcache.heads.logistic.objective import FeatureSlices
    from featcache.heads.logistic.penalty import PenaltyScores

TOLERANCE = 1e-7  # of the exact head: its weights are then right to about 1e-5, however many workers add up
# Operations of one pass and one Hessian of the exact head from which a GPU pays. A guess until measured: with
# so many, a processor takes seconds for the whole fit, and a GPU takes seconds to start.
LEAST_EXACT_WORK = 1e11
PENALTIES = tuple(float(f"{10 ** (-4 + 6 * step / 19):.3g}") for step in range(20))  # C from 0.0001 to 100


def fit_linear(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    on_epoch: OnEpoch | None = None,
    group: ProcessGroup = ALONE,
    device: str = "cpu",
) -> Fit:
    """A linear layer by AdamW, the head of the tutorials: a stack of one.

    Args:
        device: see `head_device`.

    Raises:
        HeadError: rows no head can be trained on, settings out of range, a loss that diverges.
    """
    from featcache.heads.linear_stack import fit_stack

    check_settings(settings)
    (fit,) = fit_stack(
        {"features": train}, {"features": validation}, classes,
        [Member.of(settings, "features")], settings, seed=seed,
        on_epoch=None if on_epoch is None else (lambda lines: on_epoch(lines[0])),
        group=replace(group, trains_on=device),
    )  # fmt: skip
    if fit.about:
        raise divergence(int(fit.about["diverged_in_epoch"]))
    return fit


def fit_logistic(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress = ignore,
) -> Fit:
    """scikit-learn's `LogisticRegression` (lbfgs) with its default tolerance: the baseline.

    One against the rest for multi-label. C is chosen as for `fit_exact`, of the same objective: the head is
    the one that `settings.C` of that value gives. lbfgs draws nothing: `seed` is of the folds alone.

    Raises:
        HeadError: as `fit_exact`.
    """
    check_settings(settings)
    check_splits(train, validation, classes)
    # Of several labels a row, `balanced` weighs each by itself; their one C is chosen without it.
    several = replace(settings, class_weight="none") if train.y.ndim == 2 else settings
    rows = _Rows(train, classes, several)
    chosen = rows.penalty(validation, settings, seed, on_progress)
    on_progress(Progress("solve"))
    C, about = (settings.fixed_C, None) if chosen is None else (chosen.C, _about(chosen))
    # scikit-learn wants the whole matrix.
    x, y = rows.x if isinstance(rows.x, np.ndarray) else rows.standard(train.x), train.y
    if y.ndim == 1:
        weight, bias = _logistic(x, y, classes, C, settings, train.weight)
    else:
        parts = [_one_label(x, y[:, label], C, settings, train.weight) for label in range(classes)]
        weight, bias = np.stack([part[0] for part in parts]), np.array([part[1] for part in parts])
    scorer = Linear(*rows.standard.fold(weight, bias))
    return Fit(best=scorer, last=scorer, about=about)


def _logistic(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    C: float,
    settings: HeadSettings,
    row_weight: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    balanced = None if settings.class_weight == "none" else "balanced"
    if balanced and row_weight is not None:  # versions of scikit-learn differ in what they balance then
        balanced, row_weight = None, row_weight * balanced_weights(y, classes)
    model = LogisticRegression(C=C, max_iter=1000, class_weight=balanced)
    model.fit(x, y, sample_weight=row_weight)
    weight = np.zeros((classes, x.shape[1]), dtype=np.float64)
    bias = np.full(classes, -1e4 if len(model.classes_) < classes else 0.0)  # a class never seen
    if len(model.classes_) == 2:  # one row of coefficients: the second class against the first
        bias[model.classes_] = 0.0, model.intercept_[0]
        weight[model.classes_[1]] = model.coef_[0]
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias


def _one_label(
    x: np.ndarray, y: np.ndarray, C: float, settings: HeadSettings, row_weight: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """Weights and bias of one label of several; constant where all rows or none have it."""
    if y.min() == y.max():
        return np.zeros(x.shape[1]), 1e4 if y.max() else -1e4
    weight, bias = _logistic(x, y.astype(np.int64), 2, C, settings, row_weight)
    return weight[1], float(bias[1])


def fit_exact(  # noqa: PLR0913  (every kind of head takes the first six)
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    group: ProcessGroup = ALONE,
    on_progress: OnProgress = ignore,
    device: str = "cpu",
) -> Fit:
    """The same objective to its optimum by `featcache.heads.logistic.exact`, faster, in bounded memory.

    Where `settings.penalty_choice` is not fixed, C is the best of `PENALTIES` by the validation rows, or by
    cross-validation among the train rows; see `featcache.heads.logistic.penalty`.

    Args:
        device: where it computes; see `featcache.heads.device.choose.head_device`.

    Raises:
        HeadError: rows no head can be trained on; a class with fewer rows than folds.
        UsageError: that GPU is not there.
    """
    from featcache.heads.device.choose import head_device
    from featcache.heads.logistic import exact

    check_settings(settings)
    check_splits(train, validation, classes, group)
    height, width = train.x.shape
    work = float(height * width * (4 * classes + min(height, width)) / group.size)
    rows = _Rows(train, classes, settings, group, head_device(device, work, LEAST_EXACT_WORK))
    chosen = rows.penalty(validation, settings, seed, on_progress)
    scales: dict[str, Any] = {}
    if settings.view_scales and isinstance(train.x, JoinedColumns):
        C = settings.fixed_C if chosen is None else chosen.C
        widths = [part.shape[1] for part in train.x.parts]
        found_scales, chosen = rows.scale_views(widths, train, validation, C, on_progress)
        scales = {"view_scales": found_scales.tolist()}
    x = WatchedRows(rows.x, lambda passes: on_progress(Progress("solve", done=passes)))
    more: dict[str, Any] = {"sample_weight": rows.weight, "tolerance": TOLERANCE, "group": group}
    if chosen is None:
        found = exact.fit(x, train.y, classes, settings.fixed_C, **more)
    else:
        found = exact.refine(x, train.y, classes, chosen.best, **more)
    scorer = Linear(*rows.standard.fold(found.weight, found.bias))
    about = {"C": found.C, "gradient_norm": found.gradient_norm, "iterations": found.iterations} | scales
    return Fit(best=scorer, last=scorer, about=about | ({} if chosen is None else _about(chosen)))


def _about(chosen: PenaltyScores) -> dict[str, float]:
    """What a run says of the choice of its penalty."""
    return {"C": chosen.C, "penalties_tried": len(chosen.solutions)}


class _Rows:
    """The standardised train rows of a logistic regression.

    Args:
        device: where the solver is to compute; None is the CPU.
    """

    def __init__(
        self,
        train: LabelledFeatures,
        classes: int,
        settings: HeadSettings,
        group: ProcessGroup = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self.y, self.classes, self.group, self.device = train.y, classes, group, device
        self.standard = Standard.of(train.x, group)
        self.x = self._standardised(train.x)
        self.weight = all_weights(train, classes, settings)

    def _standardised(self, x: np.ndarray) -> FeatureSlices:
        """This worker's share of the rows, standardised, for a solver on the device."""
        own = self.group.own_rows(x)
        if self.device is None or self.device.type == "cpu":
            return standardised_rows(own, self.standard)
        from featcache.heads.device.features import DeviceFeatures

        return DeviceFeatures(own, self.device, standard=self.standard)

    def penalty(
        self, validation: LabelledFeatures, settings: HeadSettings, seed: int, on_progress: OnProgress
    ) -> PenaltyScores | None:
        """The penalties that were tried; None where one was given."""
        from featcache.heads.logistic import penalty

        if settings.penalty_choice == "fixed":
            return None
        more: dict[str, Any] = {"sample_weight": self.weight, "group": self.group, "on_progress": on_progress}
        if settings.penalty_choice == "validation":
            held_out = self._standardised(validation.x), validation.y
            return penalty.choose_penalty(self.x, self.y, self.classes, PENALTIES, held_out, **more)
        fold_of = penalty.folds_of(self.y, self.classes, settings.folds, seed)
        return penalty.cross_validate_penalty(self.x, self.y, self.classes, PENALTIES, fold_of, **more)

    def scale_views(
        self,
        widths: Sequence[int],
        train: LabelledFeatures,
        validation: LabelledFeatures,
        C: float,
        on_progress: OnProgress,
    ) -> tuple[np.ndarray, PenaltyScores]:
        """Choose by validation how much each view counts, and scale the rows so.

        Returns:
            The scales `[V]`, and the penalties near `C` that were tried with them.
        """
        from featcache.heads.logistic.penalty import choose_penalty
        from featcache.heads.logistic.view_scales import NEARBY, choose_view_scales, columns_scales

        before = self.standard

        def tried(columns: np.ndarray) -> PenaltyScores:
            self.standard = Standard(before.mean, before.scale / columns)
            del self.x  # a device may lack the room for both
            self.x = self._standardised(train.x)
            held_out = self._standardised(validation.x), validation.y
            return choose_penalty(
                self.x, self.y, self.classes, [C / NEARBY, C, C * NEARBY], held_out,
                sample_weight=self.weight, group=self.group,
            )  # fmt: skip

        def report(done: int, total: int) -> None:
            on_progress(Progress("scales", done=done, total=total))

        scales = choose_view_scales(widths, lambda columns: float(tried(columns).log_loss.min()), report)
        return scales, tried(columns_scales(scales, widths))


def _closed_form(solve: Callable[..., Scorer], *names: str) -> HeadKind:
    """A solver of `featcache.heads.closed_form`, with the settings that it reads; see `WEIGHTED`, too."""

    def fit(
        train: LabelledFeatures,
        validation: LabelledFeatures,
        classes: int,
        settings: HeadSettings,
        *,
        seed: int = 0,
        on_epoch: OnEpoch | None = None,
    ) -> Fit:
        check_rows(*validation, classes, split="validation")
        known = replace(settings, alpha=settings.fixed_alpha)
        more = {name: getattr(known, name) for name in names if name not in _WEIGHTS}
        if "class_weight" in names:
            more["row_weight"] = all_weights(train, classes, settings)
        scorer = solve(*train, classes, **more)
        return Fit(best=scorer, last=scorer)

    return HeadKind(fit, names)


class HeadKind(NamedTuple):
    """One kind of head.

    Attributes:
        fit: fits it: train, validation, classes, settings, and by keyword seed and on_epoch.
        settings: names of the `HeadSettings` that it reads.
        reports: whether `fit` takes `on_progress`, too.
        on_device: whether `fit` takes `device`, too; see `head_device`.
    """

    fit: Callable[..., Fit]
    settings: tuple[str, ...]
    reports: bool = False
    on_device: bool = False


_WEIGHTS = ("class_weight", "weight_column")
_LOGISTIC = ("C", "class_weight", "penalty", "folds", "weight_column")
_BY_EPOCHS = (
    "epochs", "lr", "weight_decay", "batch_size", "warmup", "schedule", "patience", "label_smoothing",
    "class_weight", "weight_column",
)  # fmt: skip

KINDS = {
    "linear": HeadKind(fit_linear, _BY_EPOCHS, on_device=True),
    "lexical": HeadKind(fit_lexical, _WEIGHTS, reports=True),
    "logistic": HeadKind(fit_logistic, _LOGISTIC, reports=True),
    "exact": HeadKind(fit_exact, (*_LOGISTIC, "view_scales"), reports=True, on_device=True),
    "mlp": HeadKind(fit_mlp, (*_BY_EPOCHS, "hidden", "dropout"), on_device=True),
    "ridge": _closed_form(closed_form.ridge, "alpha", *_WEIGHTS),
    "discriminant": _closed_form(closed_form.discriminant),
    "centroid": _closed_form(closed_form.centroid, *_WEIGHTS),
    "neighbours": _closed_form(closed_form.neighbours, "neighbours"),
    "attentive": HeadKind(fit_attentive, ("queries", "passes", *_BY_EPOCHS[1:])),
}

PARALLEL = ("linear", "exact")  # kinds whose rows can be shared by several workers


def check_parallel(kind: str) -> None:
    """Refuse several workers for a kind of head that only one can fit.

    Raises:
        UsageError: with the kinds that can be.
    """
    if kind not in PARALLEL:
        raise UsageError(
            f"--workers: the {kind} head is fitted by one worker",
            hint=f"several can fit: {', '.join(PARALLEL)}",
        )
