"""Head recipes, and the choice among them by cross-validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import HeadError
from featcache.heads.features import LabelledFeatures, WeightedFeatures
from featcache.runs.few_labels.recipes import RecipeChoice, choose_recipe, recipes_of, recipes_on
from featcache.settings import HeadSettings
from tests.support.feature_rows import clusters, tagged

DEPTH = ("-3/cls", "-3/mean", "last/cls", "last/mean")


def test_recipes_read_the_highest_mean_then_all_means_then_all_views() -> None:
    found = [(one.strength, one.view) for one in recipes_of(DEPTH)]
    assert found == [
        (1.0, "last/mean"), (0.1, "last/mean"), (1.0, "-3/mean,last/mean"), (1.0, ",".join(DEPTH)),
    ]  # fmt: skip
    assert [one.view for one in recipes_of(["last/cls"])] == ["last/cls"] * 2
    both = recipes_of(["-3/mean", "last/mean"])
    assert [one.view for one in both] == ["last/mean", "last/mean", "-3/mean,last/mean"]
    assert len({one.name for one in recipes_of(DEPTH)}) == 4


def test_a_wider_view_has_a_stronger_penalty() -> None:
    recipe = recipes_on("last/mean")[0]
    assert [one.settings(HeadSettings(), 40).alpha for one in recipes_on("v")] == [40, 4]
    x, y = clusters(12, width=40)
    weak, strong = (replace(HeadSettings(), alpha=alpha) for alpha in (1e-3, 1e3))
    found = [recipe.fit(LabelledFeatures(x, y), 3, head, 0).logits(x) for head in (weak, strong)]
    np.testing.assert_array_equal(*found)  # the recipe's own alpha counts


def views(useful: str, rows: int = 30) -> dict[str, LabelledFeatures]:
    """The views of `recipes_of(DEPTH)`; `useful` alone knows the labels."""
    good = clusters(rows, width=8, noise=0.3)
    noise = np.random.default_rng(0).normal(size=good.x.shape).astype(np.float32)
    found = {one.view: LabelledFeatures(noise, good.y) for one in recipes_of(DEPTH)}
    return found | {useful: good}


@pytest.mark.parametrize("useful", ["last/mean", "-3/mean,last/mean", ",".join(DEPTH)])
def test_cross_validation_finds_the_view_that_knows_the_labels(useful: str) -> None:
    recipes = recipes_of(DEPTH)
    choice = choose_recipe(recipes, views(useful), 3, HeadSettings(), seed=0)
    assert choice.best.view == useful
    for recipe, accuracy in zip(choice.recipes, choice.accuracy, strict=True):
        assert accuracy > 0.9 if recipe.view == useful else accuracy < 0.7
    assert (choice.rows, choice.folds, choice.repeats) == (30, 5, 10)
    again = choose_recipe(recipes, views(useful), 3, HeadSettings(), seed=0)
    assert again == choice


def test_the_simpler_recipe_wins_a_tie_of_less_than_half_a_row() -> None:
    recipes = recipes_of(DEPTH)
    close = RecipeChoice(recipes, (0.80, 0.7, 0.81, 0.82), rows=20, folds=5, repeats=1)
    assert close.best is recipes[0]
    assert replace(close, accuracy=(0.80, 0.7, 0.81, 0.83)).best is recipes[2]
    assert replace(close, accuracy=(0.80, 0.7, 0.81, 0.9)).best is recipes[3]


def test_cross_validation_with_classes_of_fewer_rows_than_folds() -> None:
    rows = clusters(30, noise=0.3)
    rare = np.concatenate([np.flatnonzero(rows.y == label)[:count] for label, count in enumerate((1, 3, 4))])
    choice = choose_recipe(recipes_on("v"), {"v": rows.some(rare)}, 3, HeadSettings(), seed=0)
    assert choice.folds == 3 and choice.accuracy[0] > 0.6
    assert choice.accuracy[0] < 1  # the class of one row is never right when it is held out


def test_cross_validation_refuses_rows_that_cannot_be_divided() -> None:
    for labels in ([0, 0, 0, 1], [0, 0, 0]):
        rows = LabelledFeatures(np.random.default_rng(0).normal(size=(len(labels), 3)), np.array(labels))
        with pytest.raises(HeadError, match="two rows of at least two classes") as caught:
            choose_recipe(recipes_on("v"), {"v": rows}, 2, HeadSettings(), seed=0)
        assert "--head centroid" in str(caught.value)


def test_cross_validation_of_several_labels_and_of_weighted_rows() -> None:
    several = choose_recipe(recipes_on("v"), {"v": tagged(60)}, 4, HeadSettings(), seed=0)
    assert 0.2 < max(several.accuracy) < 1
    rows, other = clusters(40, noise=0.3), clusters(40, noise=0.3, seed=5)
    wrong = LabelledFeatures(np.concatenate([rows.x, other.x]), np.concatenate([rows.y, (other.y + 1) % 3]))
    weight = np.repeat([1.0, 1e-6], 40)
    weighed = WeightedFeatures(*wrong, weight)
    plain, weighted = (
        choose_recipe(recipes_on("v")[:1], {"v": one}, 3, HeadSettings(), seed=0).accuracy[0]
        for one in (wrong, weighed)
    )
    assert plain < weighted == pytest.approx(0.5, abs=0.05)  # half of the held-out labels are wrong
