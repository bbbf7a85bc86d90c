"""Heads that read several views side by side: trained, saved, predicted, compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import CacheMiss, UsageError
from featcache.extraction.api import find_features
from featcache.heads.features import LabelledFeatures
from featcache.heads.registry import KINDS
from featcache.runs.inputs.splits import load_data
from featcache.runs.run import load_run
from featcache.runs.train import train_head
from featcache.settings import Settings, load_settings
from tests.support.cli_tools import Cli, arrow_in, make_work

DEPTH = "last/cls,last/mean,-2/cls,-2/mean,-3/cls,-3/mean"  # of a backbone with three blocks


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, tiny: object) -> Path:
    """A working folder in which `views = ["depth"]` is extracted; not to be changed."""
    folder = tmp_path_factory.mktemp("deep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        work = make_work(folder / "work", tiny("bert"), views="depth")  # type: ignore[operator]
        patch.chdir(work)
        from featcache_cli.main import main

        with arrow_in(folder / "arrow"):
            assert main(["extract", "--all-splits", "--quiet"]) == 0
    return work


@pytest.fixture
def settings(deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(deep)
    monkeypatch.setenv("COLUMNS", "80")
    return load_settings({"reports_dir": str(tmp_path / "reports"), "epochs": 3})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("lexical", "attentive")])
def test_joined_views_train_the_head_of_the_concatenated_features(settings: Settings, kind: str) -> None:
    run = train_head(settings, kind, "depth")
    data = load_data(settings, ["depth"])
    whole = {
        split: LabelledFeatures(np.asarray(found.x), found.y)
        for split, found in data.features["depth"].items()
    }
    fit = KINDS[kind].fit(whole["train"], whole["validation"], 2, settings.head, seed=settings.seed)
    head, x = run.head(), whole["test"].x
    assert head.views == tuple(sorted(DEPTH.split(","), key=find_features(settings, "test").views.index))
    assert x.shape[1] == sum(find_features(settings, "test").features(view).x.shape[1] for view in head.views)
    np.testing.assert_allclose(head.logits(x), fit.best.logits(x), rtol=1e-5, atol=1e-5)


def test_views_are_joined_in_the_order_of_the_file_whatever_was_typed(settings: Settings) -> None:
    heads = [train_head(settings, "exact", view).head() for view in ("-2/mean,last/cls", "last/cls, -2/mean")]
    assert heads[0].fingerprint == heads[1].fingerprint
    np.testing.assert_array_equal(heads[0].scorer.tensors()["weight"], heads[1].scorer.tensors()["weight"])


def test_a_view_that_is_not_cached_names_the_command(settings: Settings) -> None:
    with pytest.raises(CacheMiss, match="last/max") as refused:
        train_head(settings, "exact", "last/mean,last/max")
    assert "--views=depth,last/mean,last/max" in refused.value.hint
    with pytest.raises(UsageError, match="a name is missing"):
        train_head(settings, "exact", "depth,,last/mean")


def test_a_run_over_depth_predicts_and_is_compared(cli: Cli, settings: Settings, tmp_path: Path) -> None:
    reports = ["--reports-dir", str(tmp_path / "reports")]
    made = cli.ok("train-head", "--head", "exact", "--json", *reports).json
    assert made["run"] == "exact-depth-1"
    run = load_run(tmp_path / "reports", "exact-depth-1")
    rows = [line for line in Path("reviews/test.jsonl").read_text(encoding="utf-8").splitlines() if line]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    target = tmp_path / "answers.jsonl"
    cli.ok(
        "predict", "--input", tmp_path / "texts.jsonl", "--output", target, "--run", "exact-depth-1", *reports
    )
    answers = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    features = find_features(settings, "test").features(run.head().view)
    cached = run.head().predict_proba(features.x).max(axis=1)
    np.testing.assert_allclose([answer["probability"] for answer in answers], cached, atol=1e-5)
    shown = cli.ok("compare", *reports).out
    assert "depth" in shown
    cli.ok("train-head", "--head", "ridge", "--view", "last/mean", "--quiet", *reports)
    cli.ok("report", "exact-depth-1", "ridge-last-mean-1", "--output", tmp_path / "report.html", *reports)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "exact head on the <code>depth</code> features" in page
    assert "exact on depth, macro F1" in page  # eight names would leave no room for the scores
