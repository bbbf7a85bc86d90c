"""Head recipes for few labels, and the choice among them by cross-validation on the train rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from featcache.cache.view_names import join_views, short_view
from featcache.errors import HeadError
from featcache.heads.features import LabelledFeatures, rarest_labels
from featcache.heads.registry import KINDS
from featcache.heads.scorers import Scorer
from featcache.settings import HeadSettings

FOLDS = 5
PREDICTIONS = 1000  # held-out predictions wanted of each recipe: few rows are divided several times
MOST_REPEATS = 10
WEAKER = 0.1  # of the alpha that is otherwise the number of features


@dataclass(frozen=True)
class HeadRecipe:
    """Ridge on a view, with a penalty for few rows.

    Attributes:
        view: stored name, or several joined.
        reads: the view in words.
        strength: alpha over the number of features.
    """

    view: str
    reads: str
    strength: float = 1.0
    kind: ClassVar[str] = "ridge"

    @property
    def name(self) -> str:
        return f"{'weaker ' if self.strength < 1 else ''}{self.kind} on {self.reads}"

    def settings(self, head: HeadSettings, width: int) -> HeadSettings:
        """`head` with this recipe's penalty: the wider the features, the stronger the ridge."""
        return replace(head, alpha=self.strength * width, penalty="fixed")

    def fit(self, train: LabelledFeatures, classes: int, head: HeadSettings, seed: int) -> Scorer:
        """The scorer of some rows; nothing is chosen on others, so the rows stand for validation, too."""
        rows, settings = LabelledFeatures(train.x, train.y), self.settings(head, train.x.shape[1])
        return KINDS[self.kind].fit(train, rows, classes, settings, seed=seed).best


def recipes_of(views: Sequence[str]) -> tuple[HeadRecipe, ...]:
    """The recipes for some cached views, the simplest first.

    They read one view of the highest layer, the means of all layers, or all views.

    Args:
        views: stored names, `LAYER/POOLING`.
    """
    highest = [name for name in views if name.startswith("last/")] or list(views)
    means = [name for name in views if name.endswith("/mean")]
    one = next((name for name in highest if name in means), highest[0])
    found = list(recipes_on(one))
    if 1 < len(means) < len(views):
        found.append(HeadRecipe(join_views(means), f"{len(means)} means"))
    if len(views) > 1:
        found.append(HeadRecipe(join_views(views), f"{len(views)} views"))
    return tuple(found)


def recipes_on(view: str) -> tuple[HeadRecipe, ...]:
    """The recipes for one view, or one set of joined views, that was asked for."""
    return tuple(HeadRecipe(view, short_view(view), strength) for strength in (1.0, WEAKER))


@dataclass(frozen=True)
class RecipeChoice:
    """What cross-validation says of recipes.

    Attributes:
        recipes: the simplest first.
        accuracy: mean over the held-out rows of all repeats, one a recipe.
        rows, folds, repeats: train rows, and how they were divided.
    """

    recipes: tuple[HeadRecipe, ...]
    accuracy: tuple[float, ...]
    rows: int
    folds: int
    repeats: int

    @property
    def best(self) -> HeadRecipe:
        """The simplest of those within half a row of the highest accuracy."""
        enough = max(self.accuracy) - 0.5 / self.rows
        return next(one for one, found in zip(self.recipes, self.accuracy, strict=True) if found >= enough)


def choose_recipe(
    recipes: Sequence[HeadRecipe],
    train: Mapping[str, LabelledFeatures],
    classes: int,
    head: HeadSettings,
    *,
    seed: int,
    on_fit: Callable[[int, int], None] = lambda done, total: None,
) -> RecipeChoice:
    """Score recipes by stratified cross-validation among the train rows, repeated where these are few.

    Args:
        train: the same rows by view.
        on_fit: receives how many of the fits are done, and of how many.

    Raises:
        HeadError: fewer than two classes have two rows; rows no head can be trained on.
    """
    y = next(iter(train.values())).y
    counts = np.sort(np.bincount(np.unique(rarest_labels(y), return_inverse=True)[1].ravel()))
    if len(counts) < 2 or counts[-2] < 2:
        raise HeadError(
            "cross-validation needs two rows of at least two classes",
            hint="label more rows, or name a head, for example --head centroid",
        )
    folds = int(min(FOLDS, counts[-2]))
    repeats = int(np.clip(round(PREDICTIONS / len(y)), 1, MOST_REPEATS))
    right, done = np.zeros(len(recipes)), 0
    for repeat in range(repeats):
        for kept, held_out in divisions(y, folds, seed, repeat):
            for number, recipe in enumerate(recipes):
                rows = train[recipe.view]
                scorer = recipe.fit(rows.some(kept), classes, head, seed)
                right[number] += count_right(scorer, rows.some(held_out))
                done += 1
                on_fit(done, repeats * folds * len(recipes))
    accuracy = tuple((right / (repeats * len(y))).tolist())
    return RecipeChoice(tuple(recipes), accuracy, rows=len(y), folds=folds, repeats=repeats)


def count_right(scorer: Scorer, rows: LabelledFeatures) -> int:
    """How many rows have all their labels right."""
    logits = scorer.logits(rows.x)
    if rows.y.ndim == 2:
        return int(((logits > 0) == rows.y.astype(bool)).all(axis=1).sum())
    return int((logits.argmax(axis=1) == rows.y).sum())


def divisions(
    y: np.ndarray, folds: int, seed: int, repeat: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows to train on and the held-out rows of each fold: int64, each row held out once."""
    fold_of = _stratified_folds(y, folds, np.random.default_rng((seed % 2**64, repeat)))
    for fold in range(folds):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)


def _stratified_folds(y: np.ndarray, folds: int, random: np.random.Generator) -> np.ndarray:
    """The fold of each row, int64 `[N]`; rows of a class are spread over the folds.

    Unlike `sklearn.model_selection.StratifiedKFold`, classes with fewer rows than folds are taken.
    """
    shuffled = random.permutation(len(y))
    order = shuffled[np.argsort(rarest_labels(y)[shuffled], kind="stable")]
    fold_of = np.empty(len(y), np.int64)
    fold_of[order] = np.arange(len(y)) % folds
    return fold_of
