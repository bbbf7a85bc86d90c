"""The heads by name, each fitted on train rows and chosen on validation rows: one function a kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.heads.distributed import ALONE, Group
from featcache.heads.features import check_learnable, check_rows, standard_of, standardised_rows
from featcache.heads.fit import Epoch, Fit
from featcache.settings import HeadSettings
from featcache.system.sharded_array import part_of

Rows = tuple[np.ndarray, np.ndarray]  # features [N, D] as stored, labels int [N] or uint8 multi-hot [N, C]
Report = Callable[[Epoch], None]

TOLERANCE = 1e-7  # of the exact head: its weights are then right to about 1e-5, whoever adds up
PENALTIES = tuple(float(f"{10 ** (-4 + 6 * step / 19):.3g}") for step in range(20))  # C from 0.0001 to 100


def fit_linear(
    train: Rows,
    validation: Rows,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    progress: Report | None = None,
    group: Group = ALONE,
) -> Fit:
    """A linear layer by AdamW, the head of the tutorials: the stack of one."""
    from featcache.heads.linear_stack import fit_stack

    check_settings(settings)
    member, course = stack_settings(settings, "features", seed)
    report = None if progress is None else (lambda _, lines: progress(lines[0]))
    found = fit_stack(
        {"features": train[0]}, train[1], {"features": validation[0]}, validation[1],
        classes, [member], course, report, group,
    )  # fmt: skip
    if found[0].about:
        epoch = found[0].about["diverged_in_epoch"]
        raise HeadError(f"the loss diverged in epoch {epoch:.0f}", hint="use a smaller --lr")
    return found[0]


def check_settings(settings: HeadSettings) -> None:
    """Refuse settings without sense, also those that this kind of head does not read."""
    for name, value in (("--epochs", settings.epochs), ("--batch-size", settings.batch_size)):
        if value < 1:
            raise HeadError(f"{name} {value}: at least 1 is needed")
    for name, positive in (("--lr", settings.lr), ("--C", settings.C), ("--alpha", settings.alpha)):
        if not 0 < positive < float("inf"):
            raise HeadError(f"{name} {positive}: a number above 0 is needed")


def stack_settings(settings: HeadSettings, view: str, seed: int):  # type: ignore[no-untyped-def]
    """`(Member, Course)` of `featcache.heads.linear_stack` as `settings` have them; imports torch.

    The head begins at zero: the loss is convex, and random first weights stay where no row corrects them.
    """
    from featcache.heads.linear_stack import Course, Member

    member = Member(
        view, settings.lr, settings.weight_decay, None, settings.label_smoothing, settings.class_weight
    )
    course = Course(
        settings.epochs, settings.batch_size, settings.warmup, settings.schedule, settings.patience, seed
    )
    return member, course


def fit_logistic(
    train: Rows,
    validation: Rows,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int = 0,
    progress: Report | None = None,
) -> Fit:
    """scikit-learn's `LogisticRegression` (lbfgs) at penalty `settings.C`: the baseline.

    One against the rest for multi-label. lbfgs draws nothing, so `seed` changes nothing.

    Raises:
        HeadError: NaN or infinite features, a single class.
    """
    from featcache.heads.scorers import Linear

    check_settings(settings)
    check_rows(*train, classes)
    check_rows(*validation, classes, split="validation")
    check_learnable(*train, classes)
    standard = standard_of(train[0])
    x, y = standard(train[0]), train[1]  # scikit-learn wants the whole matrix
    if y.ndim == 1:
        weight, bias = _logistic(x, y, classes, settings)
    else:
        parts = [_one_label(x, y[:, label], settings) for label in range(classes)]
        weight, bias = np.stack([part[0] for part in parts]), np.array([part[1] for part in parts])
    scorer = Linear(*standard.fold(weight, bias))
    return Fit(best=scorer, last=scorer)


def _logistic(x: np.ndarray, y: np.ndarray, classes: int, settings: HeadSettings) -> Rows:
    from sklearn.linear_model import LogisticRegression

    balanced = None if settings.class_weight == "none" else "balanced"
    model = LogisticRegression(C=settings.C, max_iter=1000, class_weight=balanced)
    model.fit(x, y)
    weight = np.zeros((classes, x.shape[1]), dtype=np.float64)
    bias = np.full(classes, -1e4 if len(model.classes_) < classes else 0.0)  # never seen: never said
    if len(model.classes_) == 2:  # one row of coefficients: the second class against the first
        bias[model.classes_] = 0.0, model.intercept_[0]
        weight[model.classes_[1]] = model.coef_[0]
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias


def _one_label(x: np.ndarray, y: np.ndarray, settings: HeadSettings) -> tuple[np.ndarray, float]:
    """Weights and bias of one label of several; constant where all rows or none have it."""
    if y.min() == y.max():
        return np.zeros(x.shape[1]), 1e4 if y.max() else -1e4
    weight, bias = _logistic(x, y.astype(np.int64), 2, settings)
    return weight[1], float(bias[1])


def fit_exact(
    train: Rows,
    validation: Rows,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int = 0,
    progress: Report | None = None,
    group: Group = ALONE,
) -> Fit:
    """The same objective to its optimum by `featcache.heads.exact_logistic`, faster, in bounded memory.

    `settings.penalty` says where C comes from: `settings.C`, or the best of `PENALTIES` by the validation
    rows, or by cross-validation among the train rows.

    Raises:
        HeadError: rows no head can be trained on; a class with fewer rows than folds.
    """
    from featcache.heads import exact_logistic as exact
    from featcache.heads.scorers import Linear

    check_settings(settings)
    check_rows(*train, classes, group=group)
    check_rows(*validation, classes, split="validation", group=group)
    check_learnable(*train, classes)
    standard = standard_of(train[0], group)
    mine = part_of(train[0], group.share(len(train[0])))
    x, y = standardised_rows(mine, standard), train[1]
    weight = _row_weights(y, settings)
    if settings.penalty == "validation":
        others = part_of(validation[0], group.share(len(validation[0])))
        held_out = standardised_rows(others, standard)
        found = exact.choose_penalty(
            x, y, classes, PENALTIES, held_out, validation[1],
            sample_weight=weight, tolerance=TOLERANCE, group=group,
        )  # fmt: skip
    else:
        C = settings.C
        if settings.penalty == "folds":
            C = exact.cross_validate_penalty(
                x, y, classes, PENALTIES, folds=settings.folds, seed=seed, sample_weight=weight, group=group
            ).C
        found = exact.fit(x, y, classes, C, sample_weight=weight, tolerance=TOLERANCE, group=group)
    scorer = Linear(*standard.fold(found.weight, found.bias))
    about = {"C": found.C, "gradient_norm": found.gradient_norm, "iterations": found.iterations}
    return Fit(best=scorer, last=scorer, about=about)


def _row_weights(y: np.ndarray, settings: HeadSettings) -> np.ndarray | None:
    """Balanced: N / (classes seen * rows of the class), as scikit-learn has it."""
    if settings.class_weight == "none":
        return None
    if y.ndim == 2:
        raise HeadError(
            "--class-weight balanced is not for the exact head with several labels a row",
            hint="use --head linear",
        )
    counts = np.bincount(y)
    return np.asarray(len(y) / (np.count_nonzero(counts) * counts[y]))


def fit_mlp(
    train: Rows,
    validation: Rows,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    progress: Report | None = None,
) -> Fit:
    """One hidden layer, see `featcache.heads.mlp`."""
    from featcache.heads import mlp
    from featcache.heads.linear_stack import class_weights

    weighted = settings.class_weight != "none"
    found = mlp.fit_mlp(
        train, validation, classes,
        hidden=settings.hidden, dropout=settings.dropout, epochs=settings.epochs, lr=settings.lr,
        weight_decay=settings.weight_decay, batch_size=settings.batch_size,
        label_smoothing=settings.label_smoothing, warmup=settings.warmup, schedule=settings.schedule,
        patience=settings.patience, seed=seed,
        class_weight=class_weights(train[1], classes, "balanced").numpy() if weighted else None,
        progress=None if progress is None else (lambda *line: progress(Epoch(*line))),
    )  # fmt: skip
    return Fit(found.best, found.last, tuple(Epoch(*line) for line in found.history), found.best_epoch)


def _classical(name: str, *asked: str):  # type: ignore[no-untyped-def]
    """The solver of `featcache.heads.closed_form` of that name, with the settings it asks for."""

    def fit(
        train: Rows,
        validation: Rows,
        classes: int,
        settings: HeadSettings,
        *,
        seed: int = 0,
        progress: Report | None = None,
    ) -> Fit:
        from featcache.heads import closed_form as classical

        check_rows(*validation, classes, split="validation")
        scorer = getattr(classical, name)(*train, classes, **{key: getattr(settings, key) for key in asked})
        return Fit(best=scorer, last=scorer)

    return fit


_BY_EPOCHS = (
    "epochs", "lr", "weight_decay", "batch_size", "warmup", "schedule", "patience", "label_smoothing",
    "class_weight",
)  # fmt: skip

# kind: how it is fitted, and the settings it reads
KINDS = {
    "linear": (fit_linear, _BY_EPOCHS),
    "logistic": (fit_logistic, ("C", "class_weight")),
    "exact": (fit_exact, ("C", "class_weight", "penalty", "folds")),
    "mlp": (fit_mlp, (*_BY_EPOCHS, "hidden", "dropout")),
    "ridge": (_classical("ridge", "alpha"), ("alpha",)),
    "discriminant": (_classical("discriminant"), ()),
    "centroid": (_classical("centroid"), ()),
    "neighbours": (_classical("neighbours", "neighbours"), ("neighbours",)),
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
