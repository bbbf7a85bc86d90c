"""`--head auto` with few rows a class: the contrastive step beside the head, in the same folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featcache
from featcache.errors import BackboneError, FeatcacheError, HeadError
from featcache.finetuning.few_labels import train as module
from featcache.finetuning.few_labels.train import train_few_labels
from featcache.finetuning.few_labels.trial import StepTrial, can_step, try_step
from featcache.finetuning.finetune import prepare
from featcache.finetuning.recipe import CONTRASTIVE, build_recipe
from featcache.runs.few_labels.recipes import count_right, divisions, recipes_on
from featcache.runs.few_labels.train import DrawnRows
from featcache.settings import load_settings
from featcache.system.progress import Progress, ignore
from tests.support.cli_tools import Cli, widest

pytestmark = pytest.mark.usefixtures("arrow_cache")
AUTO = ("train-head", "--head", "auto", "--rows-per-class", "6")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two training steps instead of twenty."""
    monkeypatch.setattr(module, "build_recipe", lambda values: build_recipe(values | {"steps": 2}))


def trial(right: int, head_right: int) -> StepTrial:
    return StepTrial(right, head_right, rows=12, folds=5, blocks="top-blocks:2", seconds=1.0)


def settled(monkeypatch: pytest.MonkeyPatch, right: int, head_right: int) -> None:
    """The trial comes out like this."""
    monkeypatch.setattr(module, "try_step", lambda *_: trial(right, head_right))


@pytest.mark.parametrize(("right", "head_right", "wins"), [(9, 8, True), (8, 8, True), (7, 8, False)])
def test_the_step_wins_with_as_many_right_answers(right: int, head_right: int, wins: bool) -> None:
    assert trial(right, head_right).wins is wins


@pytest.mark.usefixtures("quick")
def test_both_are_counted_on_the_rows_that_a_fold_held_out(trained: Path) -> None:
    settings = load_settings()
    drawn = DrawnRows.choose(settings, None, 6)
    recipe = build_recipe({"objective": CONTRASTIVE, "rows_per_class": 6, "steps": 2})
    tuning, model = prepare(settings, None, recipe, "last/mean")
    assert tuning.part.name == "top-blocks:3"  # the tiny backbone has no more
    split = tuning.inputs["train"].split
    np.testing.assert_array_equal(split.labels, drawn.labels)  # the same rows in the same order
    stages: list[Progress] = []
    found = try_step(drawn, tuning, model, stages.append)
    best, rows = drawn.choice.best, drawn.few.train[drawn.choice.best.view].some(drawn.rows)
    expected = sum(
        count_right(best.fit(rows.some(kept), 2, drawn.few.head, settings.seed), rows.some(held_out))
        for kept, held_out in divisions(drawn.labels, 5, settings.seed)
    )
    assert (found.head_right, found.rows, found.folds) == (expected, 12, 5) and 0 <= found.right <= 12
    assert [(one.done, one.total) for one in stages if one.stage == "contrastive"] == [
        (done, 5) for done in range(6)
    ]
    again = try_step(drawn, tuning, model, ignore)
    assert replace(again, seconds=0) == replace(found, seconds=0)


@pytest.mark.usefixtures("quick")
def test_the_step_that_wins_is_saved_with_its_blocks_and_predicts(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(monkeypatch, right=10, head_right=8)
    result = cli.ok(*AUTO)
    said = " ".join(result.out.split())
    assert (
        "12 train rows: the contrastive step on top-blocks:2 had 83.3 % right in 5 folds, a head 66.7 %"
        in said
    )
    assert "a head alone: --no-contrastive" in said and widest(result.out) <= 80
    (run,) = [one for one in featcache.list_runs(Path("reports")) if "contrastive" in one.record.solver]
    assert run.record.finetune and run.record.rows["train"] == 12
    assert len(featcache.Predictor.from_run(run).predict(["很好", "太差了"])) == 2


@pytest.mark.usefixtures("quick")
def test_the_head_that_wins_is_saved_and_the_trial_is_said(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(monkeypatch, right=7, head_right=8)
    said = " ".join(cli.ok(*AUTO).out.split())
    assert "had 58.3 % right in 5 folds, a head 66.7 %: the head is taken" in said
    (run,) = [one for one in featcache.list_runs(Path("reports")) if "contrastive" in one.record.solver]
    assert run.record.head == "ridge" and not run.record.finetune


def no_trial(*_: Any) -> StepTrial:
    raise AssertionError("the contrastive step was tried")


@pytest.mark.parametrize("change", [{"class_weight": "balanced"}, {"weight_column": "weight"}])
def test_what_a_head_alone_can_do_is_left_to_it(change: dict[str, str], trained: Path) -> None:
    settings = load_settings()
    drawn = DrawnRows.choose(settings, None, 6)
    asked = replace(settings, head=replace(settings.head, **change))
    assert can_step(settings, drawn.few) and not can_step(asked, drawn.few)
    assert not can_step(settings, replace(drawn.few, recipes=recipes_on("-2/mean")))


def test_more_than_64_rows_a_class_are_for_heads(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "prepare", no_trial)
    monkeypatch.setattr(module, "FEW", 5)
    made = train_few_labels(load_settings(), rows_per_class=6)
    assert made.record.head == "ridge" and "contrastive" not in made.record.solver


@pytest.mark.parametrize(
    ("name", "error"),
    [("prepare", BackboneError("no such model")), ("try_step", HeadError("training diverged"))],
)
def test_a_step_that_cannot_be_trained_is_noted_and_the_head_is_trained(
    name: str, error: FeatcacheError, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(module, name, failing)
    result = cli.ok(*AUTO)
    assert f"the contrastive step cannot be tried: {error.what}" in result.err
    assert "featcache finetune --objective contrastive" in " ".join(result.out.split())
    (run,) = [one for one in featcache.list_runs(Path("reports")) if "recipe" in one.record.solver]
    assert run.record.head == "ridge" and "contrastive" not in run.record.solver
