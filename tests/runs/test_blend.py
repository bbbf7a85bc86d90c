"""Blends of runs: what they become, what they are chosen by, and what is refused."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache.evaluation.calibration import fit_temperature
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.scorers import Linear, Mlp
from featcache.prediction.predictor import Predictor
from featcache.runs.blend import Part, blend_parts, blendable
from featcache.runs.inputs.splits import load_data
from featcache.runs.run import Run
from featcache.settings import load_settings
from featcache_cli.main import main
from tests.support.cli_tools import Cli, arrow_in, plain_terminal, read_rows, write_rows

HEADS = (("linear", "last/mean"), ("neighbours", "last/mean"), ("lexical", "lexical"))


@pytest.fixture(scope="module")
def noisy(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of several kinds on reviews of which every fourth has a wrong label, so that no head is right."""
    folder, draw = tmp_path_factory.mktemp("noisy"), random.Random(1)
    work = shutil.copytree(template, folder / "work")
    shutil.rmtree(work / "reports")
    with pytest.MonkeyPatch.context() as patch, arrow_in(folder / "arrow"), contextlib.chdir(work):
        plain_terminal(patch)
        for path in Path("reviews").glob("*.jsonl"):
            rows = read_rows(path)
            for row in rows:
                if draw.random() < 0.25:
                    row["label"] = {"good": "bad", "bad": "good"}[row["label"]]
            write_rows(path, ((row["text"], row["label"]) for row in rows))
        assert main(["extract", "--all-splits", "--quiet"]) == 0
        for kind, view in HEADS:
            argv = ["train-head", "--head", kind, "--view", view, "--epochs", "20", "--lr", "0.01"]
            assert main([*argv, "--quiet"]) == 0
    return work


@pytest.fixture
def here(noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(noisy, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run_of(made: dict[str, object]) -> Run:
    return featcache.load_run(Path("reports"), str(made["run"]))


def assert_predicts_as_scored(run: Run) -> None:
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    scored = run.predictions("test").probabilities
    np.testing.assert_allclose(Predictor.from_run(run).predict_proba(texts), scored, atol=1e-4)


def test_a_head_and_the_words_become_one_head(cli: Cli, here: Path) -> None:
    parts = ["linear-last-mean-1", "no-backbone-1"]
    made = cli.ok("blend", *parts, "--most", "12", "--json").json
    run, shares = run_of(made), made["solver"]["shares"]
    scorer = run.head().scorer
    assert isinstance(scorer, WordScorer) and isinstance(scorer.dense, Linear)
    assert run.record.head == "blend" and run.record.view == "last/mean,lexical"
    assert set(shares) == set(parts) and sum(shares.values()) == pytest.approx(1)
    losses = [featcache.load_run(Path("reports"), part).metric("validation", "log_loss") for part in parts]
    assert run.metric("validation", "log_loss") < min(losses)
    assert run.record.view_shares and set(run.record.view_shares) == {"last/mean", "lexical"}
    assert_predicts_as_scored(run)
    shown = cli.ok("blend", *parts).out
    assert "share of each run in the mean of the logits" in shown and all(part in shown for part in parts)
    assert run.name in cli.ok("compare").out
    cli.ok("report", run.name, "--output", "page.html")


def test_a_blend_may_give_no_answer_if_its_parts_left_rows_for_a_guarantee(cli: Cli, here: Path) -> None:
    level = ("--coverage", "0.5", "--confidence", "0.6")
    cli.refused(6, ["blend", "linear-last-mean-1", "no-backbone-1", *level], "chosen on all of validation")
    flags = ("--view", "last/cls", "--lr", "0.01", *level, "--json")
    own = [
        cli.ok("train-head", "--head", kind, "--epochs", epochs, *flags).json["run"]
        for kind, epochs in (("linear", "20"), ("mlp", "2"))
    ]
    made = cli.ok("blend", *own, *level, "--json").json
    run = run_of(made)
    assert made["abstention"]["coverage"] == 0.5 and run.head().abstention is not None
    scorer = run.head().scorer
    assert isinstance(scorer, Mlp) and scorer.hidden == 256 + 2 * 2
    assert_predicts_as_scored(run)


def test_linear_heads_of_different_views_become_one_linear_head(trained: Path) -> None:
    """Each of the two knows half of the validation rows, and nothing of the others."""
    settings = load_settings()
    data = load_data(settings, ["last/mean", "last/cls"])
    parts, expected = [], 0
    for view, half in (("last/mean", 0), ("last/cls", 1)):
        rows = data.rows(view, "validation")
        x = np.asarray(rows.x, np.float64)
        known = np.where(np.arange(len(x)) % 2 == half, 4.0 * rows.y - 2, 0.0)
        weight = np.linalg.lstsq(x, known, rcond=None)[0]
        scorer = Linear(np.stack([-weight, weight]).astype(np.float32), np.zeros(2, np.float32))
        parts.append(Part(scorer, view))
        logits = scorer.logits(rows.x)
        expected = expected + logits / fit_temperature(logits, rows.y) / 2
    made = blend_parts(settings, data, parts, 2)
    assert made.view == "last/cls,last/mean" and made.shares.tolist() == [0.5, 0.5]
    assert isinstance(made.scorer, Linear)
    rows = made.data.rows(made.view, "validation")
    np.testing.assert_allclose(made.scorer.logits(rows.x), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("runs", "code", "words"),
    [
        (["linear-last-mean-1"], 2, "two runs at least"),
        (["linear-last-mean-1", "linear-last-mean-1"], 2, "two runs at least"),
        (["linear-last-mean-1", "neighbours-last-mean-1"], 6, "its neighbours scorer is not made of layers"),
        (["linear-last-mean-1", "nothing-1"], 6, "no run 'nothing-1'"),
    ],
)
def test_what_cannot_be_blended_is_refused(
    runs: list[str], code: int, words: str, cli: Cli, here: Path
) -> None:
    cli.refused(code, ["blend", *runs], words)


def test_runs_of_other_rows_or_settings_are_refused(cli: Cli, here: Path) -> None:
    parts = ["linear-last-mean-1", "no-backbone-1"]
    cli.ok("extract", "--all-splits", "--max-length", "7", "--quiet")
    cli.refused(6, ["blend", *parts, "--max-length", "7"], "was trained on other features", "max_length")
    path = Path("reviews/train.jsonl")
    path.write_text(
        "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-2]), encoding="utf-8"
    )
    cli.ok("extract", "--all-splits", "--quiet")
    cli.refused(6, ["blend", *parts], "was trained or chosen on other rows")


def test_a_blend_that_is_no_better_is_not_saved(cli: Cli, here: Path) -> None:
    """The same head twice: no mean of both has a lower loss."""
    shutil.copytree("reports/linear-last-mean-1", "reports/again")
    cli.refused(6, ["blend", "linear-last-mean-1", "again"], "no blend of these runs has a lower log loss")


def test_runs_that_one_blend_can_have_are_picked_out(here: Path) -> None:
    names = ("neighbours-last-mean-1", "linear-last-mean-1", "no-backbone-1")
    runs = [featcache.load_run(Path("reports"), name) for name in names]
    picked = [run.name for run in blendable(load_settings(), runs)]
    assert sorted(picked) == ["linear-last-mean-1", "no-backbone-1"]
