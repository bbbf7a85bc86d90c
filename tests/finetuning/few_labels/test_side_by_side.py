"""`featcache curve --rows-per-class`: the contrastive step beside the head recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import BackboneError, FeatcacheError, HeadError
from featcache.finetuning.few_labels import side_by_side as module
from featcache.finetuning.few_labels import train
from featcache.finetuning.few_labels.trial import StepTrial
from featcache.finetuning.recipe import build_recipe
from featcache.runs.few_labels.side_by_side import CHOSEN
from tests.support.cli_tools import Cli, widest

pytestmark = pytest.mark.usefixtures("arrow_cache")
STEP = "contrastive step on top-blocks:3"  # the tiny backbone has no more


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two training steps instead of twenty."""
    for each in (module, train):
        monkeypatch.setattr(each, "build_recipe", lambda values: build_recipe(values | {"steps": 2}))


def test_the_step_is_trained_and_chosen_as_by_train_head(cli: Cli, trained: Path) -> None:
    result = cli.ok("curve", "--rows-per-class", "2", "--seeds", "1", "--json")
    scores = {one["recipe"]: one for one in result.json["scores"]}
    assert list(scores)[-2:] == [STEP, CHOSEN]
    said = " ".join(result.err.split())
    assert "the contrastive step: 3 trainings of top-blocks:3, about " in said
    assert "--no-contrastive leaves it out" in said
    auto = cli.ok("train-head", "--head", "auto", "--rows-per-class", "2", "--json").json
    trial = auto["solver"]["contrastive"]
    assert scores[STEP]["chosen"] == (trial["right"] >= trial["head_right"])
    assert scores[CHOSEN]["accuracies"] == [auto["metrics"]["test"]["accuracy"]]


def test_the_step_is_for_few_rows_and_its_choice_counts(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEW", 5)
    seen: list[tuple[int, int]] = []

    def settled(drawn: Any, tuning: Any, *_: Any) -> StepTrial:
        """The step wins with every second seed."""
        np.testing.assert_array_equal(tuning.inputs["train"].split.labels, drawn.labels)
        seed = tuning.settings.seed
        seen.append((len(drawn.rows), seed))
        return StepTrial(9 - seed % 2, 9, rows=8, folds=4, blocks="b", seconds=0.0)

    monkeypatch.setattr(module, "try_step", settled)
    flags = ("curve", "--rows-per-class", "4,6", "--seeds", "2")
    made = cli.ok(*flags, "--json").json
    assert seen == [(8, 0), (8, 1)]
    steps = [one for one in made["scores"] if one["recipe"] == STEP]
    assert [(one["rows_per_class"], one["rows"], one["chosen"]) for one in steps] == [(4, 8, 1)]
    at = [one for one in made["scores"] if one["rows_per_class"] == 4]
    assert sum(one["chosen"] for one in at[:-1]) == 2
    assert at[-1]["accuracies"][0] == steps[0]["accuracies"][0]
    monkeypatch.setattr(train, "try_step", settled)
    auto = cli.ok("train-head", "--head", "auto", "--rows-per-class", "4", "--json").json
    assert auto["metrics"]["test"]["accuracy"] == steps[0]["accuracies"][0]
    result = cli.ok(*flags)
    (line,) = [line for line in result.out.splitlines() if STEP in line]
    assert line.rstrip().endswith("-") and widest(result.out) <= 80
    alone = cli.ok(*flags, "--no-contrastive", "--json").json
    assert STEP not in str(alone) and alone["folder"] != made["folder"]


@pytest.mark.parametrize(
    ("name", "error"),
    [("prepare", BackboneError("no such model")), ("try_step", HeadError("training diverged"))],
)
def test_a_step_that_cannot_be_trained_is_noted_and_the_heads_are_compared(
    name: str, error: FeatcacheError, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(module, name, failing)
    result = cli.ok("curve", "--rows-per-class", "4", "--seeds", "1", "--json")
    assert f"the contrastive step cannot be tried: {error.what}" in result.err
    assert STEP not in result.out


def test_views_that_no_step_trains_are_compared_alone(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_step(*_: Any, **__: Any) -> None:
        raise AssertionError("the contrastive step was prepared")

    monkeypatch.setattr(module, "prepare", no_step)
    cli.ok("curve", "--rows-per-class", "4", "--seeds", "1", "--view", "last/cls,last/mean")
