"""Train a head on few labels: its recipe is chosen by cross-validation on the train rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np

from featcache.cache.view_names import require_cached
from featcache.extraction.api import find_features
from featcache.fingerprint import REGRESSION, SINGLE_LABEL
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Fit
from featcache.heads.numbers.registry import check_number_head
from featcache.runs.few_labels.recipes import (
    HeadRecipe,
    RecipeChoice,
    choose_recipe,
    recipes_of,
    recipes_on,
)
from featcache.runs.inputs.splits import CachedSplits, drawn_rows, load_data
from featcache.runs.record import RunRecord
from featcache.runs.run import Run
from featcache.runs.train import read_costs_for, save_fit
from featcache.runs.weighted_rows import draw_per_class, weighted_rows
from featcache.settings import HeadSettings, Settings

FEW = 64  # rows a class up to which the contrastive step is proposed


@dataclass(frozen=True)
class FewLabels:
    """Cached rows by view, and the recipes that may be chosen for them.

    Attributes:
        train: all cached train rows by view, with their weights.
        head: the settings without what the rows carry.
    """

    data: CachedSplits
    recipes: tuple[HeadRecipe, ...]
    train: dict[str, LabelledFeatures]
    head: HeadSettings
    classes: int

    @classmethod
    def load(cls, settings: Settings, view: str | None = None) -> FewLabels:
        """The recipes for all cached views of `settings`, or for one view alone.

        Raises:
            CacheMiss: train or validation is not extracted for these settings.
            UsageError: the view `lexical`.
        """
        if settings.data.task == REGRESSION:
            check_number_head(settings, "auto", view)
        found = find_features(settings, "train")
        if view is not None:
            require_cached(view, "--head auto")
            data = load_data(settings, [view])
            recipes = recipes_on(view)
        else:
            asked = [found.stored_view(name) for name in settings.features.views]
            recipes = recipes_of([name for name in found.views if name in ",".join(asked).split(",")])
            data = load_data(settings, tuple(dict.fromkeys(recipe.view for recipe in recipes)))
        train, head = {}, settings.head
        for name, parts in data.features.items():
            train[name], head = weighted_rows(settings, "ridge", parts["train"])
        classes = len(next(iter(data.features.values()))["train"].label_names)
        return cls(data, recipes, train, head, classes)

    @property
    def labels(self) -> np.ndarray:
        """Of the train rows."""
        return next(iter(self.train.values())).y

    def some(self, rows: np.ndarray) -> dict[str, LabelledFeatures]:
        """Some train rows by view, in memory."""
        return {view: part.some(rows) for view, part in self.train.items()}

    def choose(
        self, rows: np.ndarray, seed: int, on_fit: Callable[[int, int], None] = lambda done, total: None
    ) -> RecipeChoice:
        """The choice on some of the train rows."""
        return choose_recipe(self.recipes, self.some(rows), self.classes, self.head, seed=seed, on_fit=on_fit)


@dataclass(frozen=True)
class DrawnRows:
    """Train rows that a recipe is chosen by and trained on; `rows` are their numbers, int64 `[M]`."""

    few: FewLabels
    rows: np.ndarray
    choice: RecipeChoice
    seconds: float

    @classmethod
    def choose(
        cls,
        settings: Settings,
        view: str | None = None,
        rows_per_class: int | None = None,
        on_fit: Callable[[int, int], None] = lambda done, total: None,
    ) -> DrawnRows:
        """The recipe that cross-validation chooses; arguments and errors as of `train_few`."""
        import_module("featcache.heads.logistic.penalty")  # the import is no part of the training time
        few = FewLabels.load(settings, view)
        began = time.perf_counter()
        rows = np.arange(len(few.labels))
        if rows_per_class is not None:
            rows = draw_per_class(few.labels, rows_per_class, settings.seed)
        choice = few.choose(rows, settings.seed, on_fit)
        return cls(few, rows, choice, time.perf_counter() - began)

    @property
    def labels(self) -> np.ndarray:
        """Of the rows, in their order."""
        return np.asarray(self.few.labels[self.rows])

    def train(self, settings: Settings, more: Mapping[str, Any]) -> Run:
        """Train the chosen recipe on all the rows and save it as a run.

        Args:
            more: what else its run.json says under `solver`.
        """
        few, recipe, began = self.few, self.choice.best, time.perf_counter()
        train = few.train[recipe.view].some(self.rows)
        scorer = recipe.fit(train, few.classes, few.head, settings.seed)
        seconds = self.seconds + time.perf_counter() - began
        used = replace(settings, head=recipe.settings(settings.head, train.x.shape[1]))
        data = few.data if len(self.rows) == len(few.labels) else drawn_rows(few.data, self.rows)
        costs = read_costs_for(settings, data.features[recipe.view]["train"])
        fit = Fit(best=scorer, last=scorer, about=about_choice(self.choice) | dict(more))
        return save_fit(used, recipe.kind, data, recipe.view, fit, seconds, costs=costs)


def train_few(
    settings: Settings,
    view: str | None = None,
    *,
    rows_per_class: int | None = None,
    on_fit: Callable[[int, int], None] = lambda done, total: None,
) -> Run:
    """Choose a head recipe by cross-validation on the train rows, train it on them and save it as a run.

    Validation chooses nothing here; it calibrates the probabilities.

    Args:
        view: the one to read; by default the recipe chooses among the cached views of `settings`.
        rows_per_class: so many train rows of each class, drawn by `settings.seed`; all rows by default.
        on_fit: receives how many of the fits are done, and of how many.

    Raises:
        CacheMiss: train or validation is not extracted for these settings.
        HeadError: rows no head can be trained on, or too few for cross-validation.
        UsageError: the view `lexical`, or rows_per_class below 1.
    """
    return DrawnRows.choose(settings, view, rows_per_class, on_fit).train(settings, {})


def about_choice(choice: RecipeChoice) -> dict[str, Any]:
    """What run.json says of a choice."""
    return {
        "recipe": choice.best.name,
        "recipe_accuracy": {
            recipe.name: found for recipe, found in zip(choice.recipes, choice.accuracy, strict=True)
        },
        "folds": choice.folds,
        "repeats": choice.repeats,
    }


def choice_sentence(about: RunRecord) -> str:
    """What was chosen, how, and how to choose otherwise; for few rows a class also what is often better."""
    solver, rows = about.solver, about.rows["train"]
    if "recipe" not in solver:
        return _trial_sentence(solver["contrastive"], rows)
    name, folds, repeats = solver["recipe"], solver["folds"], solver["repeats"]
    times = f", {repeats} times" if repeats > 1 else ""
    accuracy = solver["recipe_accuracy"][name]
    said = (
        f"{rows:,} train rows: {name}, the best of {len(solver['recipe_accuracy'])} by cross-validation "
        f"({100 * accuracy:.1f} % in {folds} folds{times}); others: --head KIND --view VIEW"
    )
    if "contrastive" in solver:
        return f"{said}\n{_trial_sentence(solver['contrastive'], rows)}"
    if rows > FEW * len(about.label_names) or about.task != SINGLE_LABEL:
        return said
    return f"{said}\nof so few rows often better, in a minute: featcache finetune --objective contrastive"


def _trial_sentence(trial: Mapping[str, Any], rows: int) -> str:
    """How the contrastive step did in the folds of the head, and what was taken."""
    step, head = (f"{100 * trial[key] / trial['rows']:.1f} %" for key in ("right", "head_right"))
    same = (
        f"the contrastive step on {trial['blocks']} had {step} right in {trial['folds']} folds, a head {head}"
    )
    if trial["right"] >= trial["head_right"]:
        return f"{rows:,} train rows: {same}: the step is taken; a head alone: --no-contrastive"
    return f"{same}: the head is taken; the step: featcache finetune --objective contrastive"
