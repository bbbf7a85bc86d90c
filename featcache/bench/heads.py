"""How long heads take, beside the loop of the tutorials and beside scikit-learn, in one run.

Features are made up: normal, as correlated as those of a Transformer, with labels that a linear head gets
mostly right. The solvers see one standardised float32 matrix, so nothing but solving is timed; the loop of
the tutorials sees the same.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from featcache.heads import exact_logistic as exact
from featcache.heads.features import LabelledFeatures, Standard
from featcache.heads.fit import Course, Member
from featcache.heads.linear_stack import fit_stack

RUNS = 3
HEADS = 64
PATH = tuple(float(f"{C:.6g}") for C in np.logspace(-4, 2, 20))
BATCH = 32


def bench_heads(
    *,
    rows: int = 9600,
    width: int = 768,
    classes: int = 2,
    epochs: int = 100,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Seconds for heads on `[rows, width]` features, and their ratios.

    Args:
        epochs: of the stack and of the tutorial's loop, in batches of 32.
        report: told what is measured next.

    Returns:
        A JSON-able document: `seconds` (medians of 3 runs; the tutorial's loop runs once), `ratios` (above
        1: featcache is that many times faster; `heads_64_over_one_head` and `exact_path_20_over_exact_C1`
        are costs), `losses` (log loss plus penalty that each solver reached), `shape`, `machine`.
    """
    x, y = made_up(rows, width, classes)
    held_out = slice(0, max(1, rows // 8))
    seconds: dict[str, float] = {}
    losses: dict[str, float] = {}

    def stack(heads: int) -> None:
        rates = np.geomspace(1e-4, 1e-1, heads) if heads > 1 else [1e-3]
        members = [Member("made up", lr=float(rate), seed=None) for rate in rates]
        train, chosen = LabelledFeatures(x, y), LabelledFeatures(x[held_out], y[held_out])
        fit_stack({"made up": train}, {"made up": chosen}, classes, members, Course(epochs, BATCH))

    def measure(name: str, run: Callable[[], object], runs: int = RUNS) -> None:
        report(name)
        seconds[name] = _median(run, runs)

    def solved(name: str, loss: Callable[[], float], runs: int = RUNS) -> None:
        found: list[float] = []
        measure(name, lambda: found.append(loss()), runs)
        losses[name] = found[-1]

    stack(1)  # the first use of every kernel is not counted
    measure("one_head", lambda: stack(1))
    measure(f"heads_{HEADS}", lambda: stack(HEADS))
    measure("tutorial_dataloader", lambda: tutorial_dataloader(x, y, classes, epochs), runs=1)
    for C in (0.01, 1.0):
        solved(f"sklearn_lbfgs_C{C:g}", lambda C=C: _scikit_learn(x, y, C))  # type: ignore[misc]
        solved(f"exact_C{C:g}", lambda C=C: exact.fit(x, y, classes, C).loss)  # type: ignore[misc]
    measure("exact_path_20", lambda: exact.fit_path(x, y, classes, PATH))
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "ratios": _ratios(seconds),
        "losses": losses,
        "shape": {"rows": rows, "width": width, "classes": classes, "epochs": epochs, "batch_size": BATCH},
        "machine": {
            "threads": torch.get_num_threads(),
            "cpu": torch.cpu.get_capabilities().get("cpu_name", ""),
            "versions": {name: version(name) for name in ("torch", "scikit-learn", "numpy")},
        },
    }


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
    """Fit by lbfgs at its default tolerance; the objective reached, as `exact.Solution.loss` counts it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    model = LogisticRegression(C=C, max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model.fit(x, y)
    penalty = float((model.coef_**2).sum()) / (2 * C * len(y))
    return float(log_loss(y, model.predict_proba(x))) + penalty


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    tutorial, one, many = (seconds[name] for name in ("tutorial_dataloader", "one_head", f"heads_{HEADS}"))
    ratios = {
        "tutorial_over_one_head": tutorial / one,
        f"tutorial_x{HEADS}_over_heads_{HEADS}": HEADS * tutorial / many,
        f"heads_{HEADS}_over_one_head": many / one,
        "sklearn_over_exact_C0.01": seconds["sklearn_lbfgs_C0.01"] / seconds["exact_C0.01"],
        "sklearn_over_exact_C1": seconds["sklearn_lbfgs_C1"] / seconds["exact_C1"],
        "exact_path_20_over_exact_C1": seconds["exact_path_20"] / seconds["exact_C1"],
    }
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def _median(run: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
