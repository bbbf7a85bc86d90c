"""Accuracy of each head recipe by rows a class, beside the one that cross-validation chooses."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.fingerprint import fingerprint
from featcache.heads.features import LabelledFeatures
from featcache.runs.few_labels.recipes import count_right
from featcache.runs.few_labels.train import FewLabels
from featcache.runs.weighted_rows import draw_per_class
from featcache.settings import Settings
from featcache.system.durable import write_file

RECIPES_FORMAT = 1
RECIPES_FILE = "recipes.json"
ROWS_PER_CLASS = (8, 16, 32, 64)
CHOSEN = "chosen by cross-validation"


@dataclass(frozen=True)
class RecipeScore:
    """One recipe at one number of rows a class.

    Attributes:
        recipe: its name, or `CHOSEN`.
        rows: train rows; fewer than rows a class times classes where a class has not so many.
        accuracy: mean over the seeds.
        deviation: standard deviation over the seeds; None of one seed.
        clean_accuracy: on rows whose text no earlier split has; None where no row leaks, or every one.
        accuracies: one a seed.
        chosen: how many seeds chose it; of `CHOSEN` all of them.
    """

    recipe: str
    rows_per_class: int
    rows: int
    accuracy: float
    deviation: float | None
    clean_accuracy: float | None
    accuracies: tuple[float, ...]
    chosen: int


@dataclass(frozen=True)
class RecipeComparison:
    """What `compare_recipes` returns; `split` is `validation` where no test split is cached."""

    split: str
    seeds: int
    scores: tuple[RecipeScore, ...]
    seconds: float
    folder: Path

    @property
    def document(self) -> dict[str, Any]:
        """The content of recipes.json, plain JSON."""
        return {"format": RECIPES_FORMAT, **asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class _Scored:
    """The rows that recipes are scored on, by view, and the numbers of those that do not leak."""

    rows: dict[str, LabelledFeatures]
    clean: np.ndarray | None

    def accuracies(self, few: FewLabels, drawn: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
        """Accuracy of each recipe on all rows and on the clean ones (NaN where these are not told apart)."""
        found, train = {}, few.some(drawn)
        for recipe in few.recipes:
            scorer = recipe.fit(train[recipe.view], few.classes, few.head, seed)
            rows = self.rows[recipe.view]
            whole = count_right(scorer, rows) / len(rows.y)
            clean = np.nan
            if self.clean is not None:
                clean = count_right(scorer, rows.some(self.clean)) / len(self.clean)
            found[recipe.name] = (whole, clean)
        return found


def compare_recipes(
    settings: Settings,
    sizes: Sequence[int] = ROWS_PER_CLASS,
    seeds: int = 5,
    view: str | None = None,
    *,
    on_draw: Callable[[int, int], None] = lambda done, total: None,
) -> RecipeComparison:
    """Train every head recipe on a few rows of each class, and choose one, for each size and seed.

    Args:
        sizes: rows a class; a seed draws the rows of a smaller size from those of a larger one.
        seeds: how many draws, counted from the settings' own seed.
        view: the recipes for this view alone; by default for all cached views of `settings`.
        on_draw: receives how many of the draws are done, and of how many.

    Returns:
        The comparison, saved under `settings.paths.reports_dir`.

    Raises:
        CacheMiss: train or validation is not extracted for these settings.
        HeadError: no rows to score on, rows no head can be trained on.
        UsageError: numbers out of range.
    """
    if seeds < 1 or not sizes:
        raise UsageError("--seeds and --rows-per-class: at least one of each")
    few = FewLabels.load(settings, view)
    parts = few.data.features
    split = "test" if "test" in next(iter(parts.values())) else "validation"
    scored = _Scored(
        {name: LabelledFeatures(by_split[split].x, by_split[split].y) for name, by_split in parts.items()},
        few.data.leaks.clean(split),
    )
    if not len(next(iter(scored.rows.values())).y):
        raise HeadError(f"there is nothing to score on: {split} has no rows", hint="name a file with rows")
    sizes, began, scores = sorted(set(sizes)), time.perf_counter(), list[RecipeScore]()
    for place, size in enumerate(sizes):
        found, chosen = list[dict[str, tuple[float, float]]](), Counter[str]()
        for number in range(seeds):
            seed = settings.seed + number
            drawn = draw_per_class(few.labels, size, seed)
            one = scored.accuracies(few, drawn, seed)
            best = few.choose(drawn, seed).best.name
            chosen.update([best, CHOSEN])
            found.append(one | {CHOSEN: one[best]})
            on_draw(place * seeds + number + 1, len(sizes) * seeds)
        scores += [_score(name, size, len(drawn), found, chosen[name]) for name in found[0]]
    files = {name: file.fingerprint for name, file in few.data.files.items()}
    key = fingerprint({"files": files, "sizes": sizes, "seeds": [settings.seed, seeds], "view": view or ""})
    made = RecipeComparison(
        split=split,
        seeds=seeds,
        scores=tuple(scores),
        seconds=time.perf_counter() - began,
        folder=Path(settings.paths.reports_dir) / f"curve-recipes-{key[:8]}",
    )
    content = json.dumps(made.document, indent=1, ensure_ascii=False)
    write_file(made.folder / RECIPES_FILE, content.encode("utf-8"))
    return made


def _score(
    name: str, size: int, rows: int, found: Sequence[dict[str, tuple[float, float]]], chosen: int
) -> RecipeScore:
    table = np.array([one[name] for one in found])
    clean = float(table[:, 1].mean())
    return RecipeScore(
        recipe=name,
        rows_per_class=size,
        rows=rows,
        accuracy=float(table[:, 0].mean()),
        deviation=float(table[:, 0].std(ddof=1)) if len(table) > 1 else None,
        clean_accuracy=None if np.isnan(clean) else clean,
        accuracies=tuple(table[:, 0].tolist()),
        chosen=chosen,
    )
