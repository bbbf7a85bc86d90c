"""A head with a cost matrix: trained, saved, and everywhere the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache.errors import HeadError
from featcache.evaluation.costs import cheapest
from featcache.export.huggingface import export_huggingface
from featcache.heads.head import load_head
from tests.support.cli_tools import Cli, read_rows

pytestmark = pytest.mark.usefixtures("arrow_cache")


def written(path: str, costs: object) -> str:
    Path(path).write_text(json.dumps(costs, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def costs(trained: Path) -> str:
    """Errors on rows of the second label cost 50 times as much as the others."""
    first, second = featcache.load_run(Path("reports"), "logistic-last-mean-1").record.label_names
    return written("costs.json", {first: {second: 1}, second: {first: 50}})


def test_a_head_with_costs_answers_alike_in_training_predictions_files_and_reports(
    cli: Cli, costs: str
) -> None:
    made = cli.ok("train-head", "--head", "logistic", "--C", "0.001", "--costs", costs, "--json").json
    plain = cli.ok("train-head", "--head", "logistic", "--C", "0.001", "--json").json
    run = featcache.load_run(Path("reports"), made["run"])
    head, said = run.head(), run.predictions("test")
    assert head.costs is not None and head.costs.tolist() == [[0, 1], [50, 0]]
    np.testing.assert_array_equal(said.predicted, cheapest(said.probabilities, head.costs))
    other = featcache.load_run(Path("reports"), plain["run"])
    assert (said.predicted != other.predictions("test").predicted).any()  # the costs decide something
    np.testing.assert_array_equal(said.probabilities, other.predictions("test").probabilities)
    spent = head.costs[said.labels, said.predicted].mean()
    assert made["metrics"]["test"]["cost"] == pytest.approx(spent)
    assert spent < head.costs[said.labels, other.predictions("test").predicted].mean()
    assert "cost" not in plain["metrics"]["test"] and made["intervals"]["test"]["cost"]

    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    expected = [head.label_names[number] for number in said.predicted]
    predictor = featcache.Predictor.from_run(run)
    answers = predictor.predict(texts)
    assert [answer.label for answer in answers] == expected
    assert all(answer.probability == answer.probabilities[answer.label] for answer in answers)
    cli.ok("predict", "--run", run.name, "--input", "reviews/test.jsonl", "--output", "out.jsonl")
    assert [row["prediction"] for row in read_rows("out.jsonl")] == expected

    assert "mean cost" in cli.ok("train-head", "--head", "exact", "--costs", costs).out
    assert "cost" in cli.ok("compare").out
    cli.ok("report", run.name)
    document = json.loads((run.folder / "report.json").read_bytes())
    assert document["headline"]["cost"]["value"] == pytest.approx(spent)


def test_heads_without_costs_have_the_files_of_before(cli: Cli, costs: str) -> None:
    run = featcache.load_run(Path("reports"), "logistic-last-mean-1")
    document = json.loads((run.folder / "head.json").read_text(encoding="utf-8"))
    assert "costs" not in document
    run.head().save(Path(), "again")
    assert Path("again.json").read_bytes() == (run.folder / "head.json").read_bytes()


def test_costs_of_a_sweep_go_into_its_best_head(cli: Cli, costs: str) -> None:
    made = cli.ok("sweep", "--lr", "1e-3", "--epochs", "2", "--costs", costs, "--json").json
    assert featcache.load_run(Path("reports"), made["best"]["run"]).head().costs is not None


def test_a_stock_model_cannot_hold_costs(cli: Cli, costs: str, tmp_path: Path) -> None:
    made = cli.ok("train-head", "--view", "last/cls", "--epochs", "2", "--costs", costs, "--json").json
    with pytest.raises(HeadError, match="the one that costs least"):
        export_huggingface(featcache.load_run(Path("reports"), made["run"]), tmp_path / "out")


@pytest.mark.bad_input("defects")
def test_costs_that_do_not_fit_the_labels_are_refused_before_training(cli: Cli, trained: Path) -> None:
    asked = ("train-head", "--costs", written("costs.json", [[0, 1, 1]] * 3))
    cli.refused(2, asked, "the matrix is 3 x 3, and there are 2 labels")
    assert len(list(Path("reports").glob("*/run.json"))) == 2


@pytest.mark.bad_input("defects")
@pytest.mark.parametrize(
    "costs", [[], [[0, 1]], [[0, -1], [1, 0]], [[0, 1], [1]], [[0, 1, 1]] * 3, [[1, 1], [1, 1]]]
)
def test_a_head_file_with_costs_that_do_not_fit_is_refused(trained: Path, costs: object) -> None:
    folder = Path("reports/logistic-last-mean-1")
    document = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    (folder / "head.json").write_text(json.dumps(document | {"costs": costs}), encoding="utf-8")
    with pytest.raises(HeadError):
        load_head(folder)
