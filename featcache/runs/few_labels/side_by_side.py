"""Accuracy of each head recipe by rows a class, beside the one that cross-validation chooses."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.fingerprint import fingerprint
from featcache.heads.features import LabelledFeatures
from featcache.plain_file import read_plain
from featcache.runs.few_labels.recipes import count_right
from featcache.runs.few_labels.train import DrawnRows, FewLabels
from featcache.runs.run import Run
from featcache.runs.weighted_rows import draw_per_class
from featcache.settings import Settings
from featcache.system.documents import read_document
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
    """What `compare_recipes` returns; `split` is `validation` where no test split is cached.

    Attributes:
        caches: fingerprints of the cache files by split.
    """

    split: str
    seeds: int
    scores: tuple[RecipeScore, ...]
    seconds: float
    folder: Path
    caches: dict[str, str] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """The content of recipes.json, plain JSON."""
        return {"format": RECIPES_FORMAT, **asdict(self), "folder": str(self.folder)}

    def save(self) -> None:
        """Write recipes.json into its folder."""
        content = json.dumps(self.document, indent=1, ensure_ascii=False)
        write_file(self.folder / RECIPES_FILE, content.encode("utf-8"))


class Draw(NamedTuple):
    """So many rows of each class, drawn by a seed."""

    rows_per_class: int
    seed: int


@dataclass(frozen=True)
class DrawAnswers:
    """A recipe beside the heads, trained on one draw.

    Attributes:
        labels: what it predicts for the rows that are scored, int64 `[N]`.
        chosen: cross-validation takes it, not the head.
    """

    labels: np.ndarray
    chosen: bool


@dataclass(frozen=True)
class RecipeBeside:
    """A recipe that is no head on cached features, with its answers on some of the draws."""

    name: str
    answers: Mapping[Draw, DrawAnswers]


TrainBeside = Callable[[Mapping[Draw, DrawnRows], str], RecipeBeside | None]


@dataclass(frozen=True)
class _Scored:
    """The rows that recipes are scored on, by view, and the numbers of those that do not leak."""

    rows: dict[str, LabelledFeatures]
    clean: np.ndarray | None

    @classmethod
    def of(cls, few: FewLabels, split: str) -> _Scored:
        """The rows of a split.

        Raises:
            HeadError: there are none.
        """
        parts = {name: by_split[split] for name, by_split in few.data.features.items()}
        rows = {name: LabelledFeatures(part.x, part.y) for name, part in parts.items()}
        if not len(next(iter(rows.values())).y):
            raise HeadError(
                f"there is nothing to score on: {split} has no rows", hint="name a file with rows"
            )
        return cls(rows, few.data.leaks.clean(split))

    def accuracies(self, drawn: DrawnRows, seed: int) -> dict[str, tuple[float, float]]:
        """Accuracy of each head recipe on all rows and on the clean ones (NaN where nothing leaks)."""
        few = drawn.few
        found, train = {}, few.some(drawn.rows)
        for recipe in few.recipes:
            scorer = recipe.fit(train[recipe.view], few.classes, few.head, seed)
            rows = self.rows[recipe.view]
            whole = count_right(scorer, rows) / len(rows.y)
            clean = np.nan
            if self.clean is not None:
                clean = count_right(scorer, rows.some(self.clean)) / len(self.clean)
            found[recipe.name] = (whole, clean)
        return found

    def of_labels(self, labels: np.ndarray) -> tuple[float, float]:
        """The same of the labels that are predicted for all rows."""
        right = labels == next(iter(self.rows.values())).y
        return float(right.mean()), np.nan if self.clean is None else float(right[self.clean].mean())


def compare_recipes(
    settings: Settings,
    sizes: Sequence[int] = ROWS_PER_CLASS,
    seeds: int = 5,
    view: str | None = None,
    *,
    beside: TrainBeside = lambda drawn, split: None,
    on_draw: Callable[[int, int], None] = lambda done, total: None,
) -> RecipeComparison:
    """Train every recipe on a few rows of each class, and choose one, for each size and seed.

    Args:
        sizes: rows a class; a seed draws the rows of a smaller size from those of a larger one.
        seeds: how many draws, counted from the settings' own seed.
        view: the recipes for this view alone; by default for all cached views of `settings`.
        beside: trains a recipe beside the heads on the draws, and answers for the rows of a split.
        on_draw: receives of how many draws the heads are trained, and of how many there are.

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
    split = "test" if "test" in next(iter(few.data.features.values())) else "validation"
    scored, began, sizes = _Scored.of(few, split), time.perf_counter(), sorted(set(sizes))
    draws = [Draw(size, settings.seed + number) for size in sizes for number in range(seeds)]
    drawn, found = dict[Draw, DrawnRows](), dict[Draw, dict[str, tuple[float, float]]]()
    for number, draw in enumerate(draws, start=1):
        rows = draw_per_class(few.labels, draw.rows_per_class, draw.seed)
        drawn[draw] = one = DrawnRows(few, rows, few.choose(rows, draw.seed), seconds=0.0)
        found[draw] = scored.accuracies(one, draw.seed)
        on_draw(number, len(draws))
    chosen = {draw: one.choice.best.name for draw, one in drawn.items()}
    if other := beside(drawn, split):
        for draw, answers in other.answers.items():
            found[draw][other.name] = scored.of_labels(answers.labels)
            chosen[draw] = other.name if answers.chosen else chosen[draw]
    by_size = [[draw for draw in draws if draw.rows_per_class == size] for size in sizes]
    scores = [score for same in by_size for score in _scores(same, drawn, found, chosen)]
    caches = {name: file.fingerprint for name, file in few.data.files.items()}
    asked = {"files": caches, "sizes": sizes, "seeds": [settings.seed, seeds], "view": view or ""}
    key = fingerprint(asked | ({"beside": other.name} if other else {}))
    made = RecipeComparison(
        split=split,
        seeds=seeds,
        scores=tuple(scores),
        seconds=time.perf_counter() - began,
        folder=Path(settings.paths.reports_dir) / f"curve-recipes-{key[:8]}",
        caches=caches,
    )
    made.save()
    return made


def _scores(
    draws: Sequence[Draw],
    drawn: Mapping[Draw, DrawnRows],
    found: Mapping[Draw, Mapping[str, tuple[float, float]]],
    chosen: Mapping[Draw, str],
) -> list[RecipeScore]:
    """The recipes at one size, of which `draws` are.

    Args:
        found: accuracies of each recipe on all rows and on the clean ones.
        chosen: name of the recipe that was chosen.
    """
    names = [chosen[draw] for draw in draws]
    columns = {name: [found[draw][name] for draw in draws] for name in found[draws[0]]}
    columns[CHOSEN] = [found[draw][name] for draw, name in zip(draws, names, strict=True)]
    counts = Counter([*names, *[CHOSEN] * len(draws)])
    scores = []
    for name, column in columns.items():
        whole, clean = np.array(column).T
        score = RecipeScore(
            recipe=name,
            rows_per_class=draws[0].rows_per_class,
            rows=len(drawn[draws[0]].rows),
            accuracy=float(whole.mean()),
            deviation=float(whole.std(ddof=1)) if len(whole) > 1 else None,
            clean_accuracy=None if np.isnan(clean.mean()) else float(clean.mean()),
            accuracies=tuple(whole.tolist()),
            chosen=counts[name],
        )
        scores.append(score)
    return scores


@dataclass(frozen=True)
class SavedScore:
    """What is read of a `RecipeScore`."""

    recipe: str
    rows_per_class: int
    accuracy: float
    deviation: float | None = None


@dataclass(frozen=True)
class SavedComparison:
    """What is read of a recipes.json; those of earlier versions do not name their cache files."""

    split: str
    seeds: int
    scores: tuple[SavedScore, ...]
    caches: dict[str, str] = field(default_factory=dict)


def saved_comparison(reports_dir: Path, run: Run) -> SavedComparison | None:
    """The comparison with the most scores among those of the cache files of a run; None without one."""
    caches = {split: cache.fingerprint for split, cache in run.record.caches.items()}
    found = []
    for path in sorted(reports_dir.glob(f"curve-recipes-*/{RECIPES_FILE}")):
        try:
            saved = read_document(SavedComparison, read_plain(path), str(path), ValueError)
        except (OSError, ValueError):
            continue  # a folder of that name from another program
        if saved.caches and saved.caches == caches:
            found.append(saved)
    return max(found, key=lambda saved: len(saved.scores), default=None)
