"""How long heads take, beside the loop of the tutorials and beside scikit-learn, in one run.

Features are made up: normal, as correlated as those of a Transformer, with labels that a linear head predicts
mostly right. The solvers and the loop get the same standardised float32 matrix: only solving is timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from featcache.bench.heads.on_device import DeviceHeads, heads_on
from featcache.bench.timing import DIGITS, Machine, median_seconds, this_machine
from featcache.heads.features import LabelledFeatures, Standard
from featcache.heads.fit import Member
from featcache.heads.linear_stack import fit_stack
from featcache.heads.logistic import exact
from featcache.heads.logistic.penalty import choose_penalty
from featcache.settings import HeadSettings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

RUNS = 3
HEADS = 64
PATH = tuple(float(f"{C:.6g}") for C in np.logspace(-4, 2, 20))
BATCH = 32


@dataclass(frozen=True)
class FeatureShape:
    """The made-up features and how heads were trained on them."""

    rows: int
    width: int
    classes: int
    epochs: int
    batch_size: int = BATCH


@dataclass(frozen=True)
class HeadsBenchmark:
    """What `bench_heads` returns.

    Attributes:
        seconds: medians of 3 runs; the loop of the tutorials and scikit-learn's path of penalties run once.
            `compared_path_20` solves 20 penalties well enough to compare them, `chosen_penalty` stops where
            an eighth of the rows, held out, has turned.
        ratios: above 1, featcache is that many times faster; `heads_64_over_one_head` and
            `exact_path_20_over_exact_C1` are costs.
        losses: log loss plus penalty that each solver reached.
        on_device: heads there and on the CPU; None where no device was named.
    """

    seconds: dict[str, float]
    ratios: dict[str, float]
    losses: dict[str, float]
    shape: FeatureShape
    machine: Machine
    on_device: DeviceHeads | None = None


def bench_heads(
    *,
    rows: int = 9600,
    width: int = 768,
    classes: int = 2,
    epochs: int = 100,
    device: str | None = None,
    on_progress: OnProgress = ignore,
) -> HeadsBenchmark:
    """Seconds for heads on `[rows, width]` features, and their ratios.

    Args:
        epochs: of the stack and of the tutorials' loop, in batches of 32.
        device: such as `cuda`, where heads are measured, too.
        on_progress: receives what is measured next as a stage.
    """
    x, y = made_up(rows, width, classes)
    held_out = slice(0, max(1, rows // 8))
    seconds, losses = dict[str, float](), dict[str, float]()

    settings = HeadSettings(epochs=epochs, batch_size=BATCH)

    def stack(heads: int) -> None:
        rates = np.geomspace(1e-4, 1e-1, heads) if heads > 1 else [1e-3]
        members = [Member("made up", lr=float(rate), seed=None) for rate in rates]
        train, chosen = LabelledFeatures(x, y), LabelledFeatures(x[held_out], y[held_out])
        fit_stack({"made up": train}, {"made up": chosen}, classes, members, settings)

    def measure(name: str, run: Callable[[], object], runs: int = RUNS) -> None:
        on_progress(Progress(name))
        seconds[name] = median_seconds(run, runs)

    def solve(name: str, loss: Callable[[], float]) -> None:
        found: list[float] = []
        measure(name, lambda: found.append(loss()))
        losses[name] = found[-1]

    stack(1)  # the first use of every kernel does not count
    measure("one_head", lambda: stack(1))
    measure(f"heads_{HEADS}", lambda: stack(HEADS))
    measure("tutorial_dataloader", lambda: tutorial_dataloader(x, y, classes, epochs), runs=1)
    for C in (0.01, 1.0):
        solve(f"sklearn_lbfgs_C{C:g}", lambda C=C: _scikit_learn(x, y, C))  # type: ignore[misc]
        solve(f"exact_C{C:g}", lambda C=C: exact.fit(x, y, classes, C).loss)  # type: ignore[misc]
    measure("exact_path_20", lambda: exact.fit_path(x, y, classes, PATH))
    others, rest = slice(held_out.stop, None), (x[held_out], y[held_out])
    measure("compared_path_20", lambda: list(exact.walk_path(x[others], y[others], classes, PATH)))
    measure("chosen_penalty", lambda: choose_penalty(x[others], y[others], classes, PATH, rest))
    measure("sklearn_path_20", lambda: _scikit_learn_path(x, y, held_out), runs=1)
    shape = FeatureShape(rows, width, classes, epochs)
    machine = this_machine("scikit-learn", "numpy")
    both = LabelledFeatures(x, y), LabelledFeatures(x[held_out], y[held_out])
    found = HeadsBenchmark(
        seconds=seconds, ratios=_ratios(seconds), losses=losses, shape=shape, machine=machine,
        on_device=None if device is None else heads_on(device, *both, classes, settings, on_progress),
    )  # fmt: skip
    return tidied(found, digits=DIGITS)


def made_up(rows: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features float32 `[rows, width]` and labels int64 `[rows]`.

    The spectrum falls as k^-0.7, about as it does for BERT's vectors; one label in ten is wrong.
    """
    dice = np.random.default_rng(seed)
    mix = dice.standard_normal((width, width)) * (np.arange(1, width + 1) ** -0.7)[:, None]
    x = dice.standard_normal((rows, width)) @ mix
    logits = x @ dice.standard_normal((width, classes))
    y = (logits + 0.5 * logits.std() * dice.standard_normal(logits.shape)).argmax(1)
    y = np.where(dice.random(rows) < 0.1, dice.integers(0, classes, rows), y)
    return Standard.of(x)(x).astype(np.float32), y


def tutorial_dataloader(x: np.ndarray, y: np.ndarray, classes: int, epochs: int) -> None:
    """The loop of the tutorials: TensorDataset, shuffling DataLoader, CrossEntropyLoss, AdamW."""
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    loader = DataLoader(
        TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=BATCH, shuffle=True
    )
    model = torch.nn.Linear(x.shape[1], classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = torch.nn.CrossEntropyLoss()
    for _ in range(epochs):
        for features, labels in loader:
            optimizer.zero_grad()
            loss_of(model(features), labels).backward()
            optimizer.step()


def _scikit_learn(x: np.ndarray, y: np.ndarray, C: float) -> float:
    """Fit by lbfgs at its default tolerance; the objective reached, counted like `exact.Solution.loss`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    model = LogisticRegression(C=C, max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model.fit(x, y)
    penalty = float((model.coef_**2).sum()) / (2 * C * len(y))
    return float(log_loss(y, model.predict_proba(x))) + penalty


def _scikit_learn_path(x: np.ndarray, y: np.ndarray, held_out: slice) -> None:
    """scikit-learn's own choice among the penalties by the held-out rows, each fit starting from the last."""
    from sklearn.linear_model import LogisticRegressionCV

    numbers = np.arange(len(x))
    split = [(numbers[held_out.stop :], numbers[held_out])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of defaults that will change
        LogisticRegressionCV(Cs=PATH, cv=split, max_iter=5000, refit=False, scoring="accuracy").fit(x, y)


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    tutorial, one, many = (seconds[name] for name in ("tutorial_dataloader", "one_head", f"heads_{HEADS}"))
    return {
        "tutorial_over_one_head": tutorial / one,
        f"tutorial_x{HEADS}_over_heads_{HEADS}": HEADS * tutorial / many,
        f"heads_{HEADS}_over_one_head": many / one,
        "sklearn_over_exact_C0.01": seconds["sklearn_lbfgs_C0.01"] / seconds["exact_C0.01"],
        "sklearn_over_exact_C1": seconds["sklearn_lbfgs_C1"] / seconds["exact_C1"],
        "exact_path_20_over_exact_C1": seconds["exact_path_20"] / seconds["exact_C1"],
        "sklearn_path_20_over_chosen_penalty": seconds["sklearn_path_20"] / seconds["chosen_penalty"],
    }
