"""Runs that predict numbers, from the command line: trained, saved, compared; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import featcache
from featcache.errors import HeadError
from featcache.heads.numbers.registry import NUMBER_KINDS
from featcache.heads.registry import KINDS
from featcache.runs.numbers.predictions import number_predictions
from featcache.runs.run import load_run, ranked
from tests.support.cli_tools import Cli, edit_run, read_rows
from tests.support.rated_reviews import LINEAR, RIDGE

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_a_run_has_the_scores_of_its_predictions(rated: Path, cli: Cli) -> None:
    run = load_run(Path("reports"), RIDGE)
    said = number_predictions(run, "test")
    labels = [row["label"] for row in read_rows("reviews/test.jsonl")]
    np.testing.assert_array_equal(said.labels, labels)
    assert run.record.task == "regression" and run.record.label_names == () and not run.record.scores
    metrics = run.record.metrics["test"]
    assert metrics["mae"] == pytest.approx(np.abs(said.errors).mean())
    assert metrics["r2"] == pytest.approx(r2_score(said.labels, said.predicted))
    assert metrics["r2"] > 0.5  # the labels can be learned
    for name, (low, high) in run.record.intervals["test"].items():
        assert low < metrics[name] < high
    clean = run.record.clean
    assert clean is not None and clean.leaked["test"] == 3
    assert clean.metrics["test"]["mae"] == pytest.approx(np.abs(said.errors[:-3]).mean())
    with pytest.raises(HeadError, match="predicts numbers, and no labels"):
        run.predictions("test")


def test_the_head_is_the_ridge_of_scikit_learn(rated: Path, cli: Cli) -> None:
    made = cli.ok("train-head", "--head", "ridge", "--view", "last/mean", "--alpha", "7", "--json").json
    assert made["solver"] == {"alpha": 7.0} and made["task"] == "regression"
    from featcache.cache.cache import Cache

    parts = {}
    for split in ("train", "test"):
        (file,) = Cache.open("cache").files(split)
        parts[split] = file.features("last/mean")
    x, y = (parts["train"].x.astype(np.float64), parts["train"].y)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    model = Ridge(7 / y.std() ** 0).fit((x - mean) / scale, y)
    wanted = model.predict((parts["test"].x.astype(np.float64) - mean) / scale)
    found = number_predictions(load_run(Path("reports"), made["run"]), "test")
    np.testing.assert_allclose(found.predicted, wanted, atol=1e-3)


def test_the_interval_is_of_rows_that_chose_nothing(rated: Path) -> None:
    run = load_run(Path("reports"), RIDGE)
    interval, head = run.record.interval, run.head()
    assert interval is not None and head.numbers is not None and head.numbers.interval == interval
    said = number_predictions(run, "validation")
    errors = np.sort(np.abs(said.errors[said.row_hash[:, 0] % 3 != 0]))
    assert interval.rows == len(errors)
    assert interval.half_width == pytest.approx(errors[int(np.ceil((len(errors) + 1) * 0.9)) - 1])
    test = number_predictions(run, "test")
    inside = (np.abs(test.errors) <= interval.half_width)[:-3]  # those that leak are left out
    assert run.record.interval_covered == {"test": pytest.approx(inside.mean())}
    assert "90 %" in interval.guarantee and f"{interval.rows} validation rows" in interval.guarantee


def test_another_level_has_another_width_and_too_few_rows_are_refused(rated: Path, cli: Cli) -> None:
    made = cli.ok("train-head", "--head", "ridge", "--view", "last/mean", "--interval", "0.5", "--json").json
    base = load_run(Path("reports"), RIDGE).record.interval
    assert base is not None and made["interval"]["half_width"] < base.half_width
    assert made["interval"]["level"] == 0.5
    cli.refused(6, ("train-head", "--head", "ridge", "--interval", "0.99"), "99 validation rows")
    rows = Path("reviews/validation.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    Path("reviews/validation.jsonl").write_text("\n".join(rows), encoding="utf-8")
    cli.ok("extract", "--all-splits")
    made = cli.ok("train-head", "--head", "ridge", "--json").json
    assert made["interval"] is None and made["interval_covered"] is None
    assert "too few validation rows" in cli.ok("train-head", "--head", "ridge").out


def test_tables_show_scores_in_the_unit_of_the_labels(rated: Path, cli: Cli) -> None:
    shown = cli.ok("train-head", "--head", "ridge", "--view", "last/cls,last/mean").out
    for word in ("MAE", "RMSE", "R²", "rank corr.", "clean", "chosen by validation", "90 % interval", "± "):
        assert word in shown
    history = cli.ok("train-head", "--epochs", "3").out
    assert "validation explained variance" in history and "accuracy" not in history
    assert "what each view adds" in shown


def test_runs_are_compared_by_their_errors(rated: Path, cli: Cli) -> None:
    document = cli.ok("compare", "--json").json
    best = document["best"]
    order = [run.name for run in ranked([load_run(Path("reports"), name) for name in (LINEAR, RIDGE)])]
    assert best == order[0] == document["base"]
    (made,) = document["comparisons"]
    assert made["run"] == order[1]
    first, second = (number_predictions(load_run(Path("reports"), name), "test") for name in order)
    for name, error in (("mae", lambda e: np.abs(e).mean()), ("rmse", lambda e: np.sqrt((e**2).mean()))):
        difference = error(second.errors) - error(first.errors)
        assert made[name]["difference"] == pytest.approx(difference)
        low, high = made[name]["interval"]
        assert low < difference < high and made[name]["corrected_p"] >= made[name]["p"]
    assert made["clean"]["rows"] == len(first) - 3
    shown = cli.ok("compare").out
    assert "val. RMSE" in shown and "vs base" in shown


def test_a_worse_run_fails_the_check(rated: Path, cli: Cli) -> None:
    poor = cli.ok("train-head", "--epochs", "1", "--lr", "1e-6", "--view", "last/cls", "--json").json["run"]
    failed = cli("compare", poor, "--fail-if-worse", RIDGE)
    assert failed.code == 7 and f"{poor} is worse than {RIDGE}" in failed.out
    fine = cli.ok("compare", RIDGE, "--fail-if-worse", poor)
    assert "no run is significantly worse" in fine.out


def test_runs_of_both_tasks_are_shown_apart(rated: Path, cli: Cli, template: Path) -> None:
    import shutil

    shutil.copytree(template / "reports", "reports", dirs_exist_ok=True)
    document = cli.ok("compare", "--json").json
    assert {run["task"] for run in document["runs"]} == {"single-label"}
    assert {run["task"] for run in document["other_task"]["runs"]} == {"regression"}
    shown = cli.ok("compare").out
    assert "validation accuracy" in shown and "validation RMSE" in shown
    cli.refused(6, ("compare", document["best"], "--fail-if-worse", RIDGE), "one predicts numbers")


@pytest.mark.parametrize("kind", sorted({*KINDS} - {*NUMBER_KINDS}))
def test_heads_that_only_classify_are_refused(kind: str, rated: Path, cli: Cli) -> None:
    cli.refused(2, ("train-head", "--head", kind), f"the {kind} head predicts classes", "linear, ridge")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("train-head", "--class-weight", "balanced"), ("--class-weight is about", "--weight-column")),
        (("train-head", "--costs", "costs.json"), ("--costs is about classes",)),
        (("train-head", "--label-smoothing", "0.1"), ("--label-smoothing is about classes",)),
        (("train-head", "--max-error", "0.1"), ("--max-error 0.1 is about classes", "--interval")),
        (("train-head", "--head", "ridge", "--view", "last/cls,lexical"), ("heads of words (lexical)",)),
        (("train-head", "--head", "ridge", "--workers", "2"), ("fitted by one worker",)),
        (("train-head", "--interval", "1"), ("--interval",)),
        (("train-head", "--head", "auto"), ("the auto head predicts classes",)),
        (("train-head", "--rows-per-class", "8"), ("--rows-per-class is about classes",)),
        (("curve", "--rows-per-class", "8"), ("classes, and these labels are numbers",)),
        (("sweep",), ("featcache sweep is about classes", "train-head")),
        (("curve",), ("featcache curve is about classes",)),
        (("inspect",), ("featcache inspect is about classes",)),
        (("blend", RIDGE, LINEAR), ("featcache blend is about classes",)),
        (("finetune", "--train", "top-blocks:1"), ("featcache finetune is about classes",)),
        (("extract", "--all-splits", "--label-names", "a,b"), ("--label-names is about classes",)),
    ],
)
def test_what_is_about_classes_is_refused(
    argv: tuple[str, ...], says: tuple[str, ...], rated: Path, cli: Cli
) -> None:
    cli.refused(2, argv, *says)


def test_a_cache_of_numbers_is_not_one_of_classes(rated: Path, cli: Cli) -> None:
    """Features are copied between the two, and never taken for the other."""
    config = Path("featcache.toml")
    text = config.read_text(encoding="utf-8").replace('task = "regression"', "# task =")
    config.write_text(text, encoding="utf-8")
    refused = cli.refused(5, ("train-head",), "task (cached 'regression', wanted none)")
    assert "--task" in refused.err
    assert "look like numbers" in cli("extract", "--all-splits").err
    for split in ("train", "validation", "test"):
        rows = read_rows(f"reviews/{split}.jsonl")
        whole = "".join(json.dumps(row | {"label": round(row["label"])}) + "\n" for row in rows)
        Path(f"reviews/{split}.jsonl").write_text(whole, encoding="utf-8")
    made = cli.ok("extract", "--all-splits", "--json").json
    made = made["splits"] if isinstance(made, dict) else made
    assert [one["encoded"] for one in made] == [0, 0, 0]
    assert cli.ok("train-head", "--json").json["task"] == "single-label"
    cli.refused(5, ("train-head", "--task", "regression"), "task (cached none, wanted 'regression')")


def test_rows_without_weight_teach_nothing(rated: Path, cli: Cli) -> None:
    rows = read_rows("reviews/train.jsonl")
    odd = (row | ({"label": 90, "weight": 0} if n % 3 == 0 else {"weight": 2}) for n, row in enumerate(rows))
    Path("reviews/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd), encoding="utf-8")
    cli.ok("extract", "--all-splits")
    for head in ("ridge", "linear"):
        plain, weighted = (
            cli.ok("train-head", "--head", head, "--epochs", "9", "--lr", "0.01", *more, "--json").json
            for more in ((), ("--weight-column", "weight"))
        )
        assert weighted["metrics"]["test"]["mae"] < plain["metrics"]["test"]["mae"]


def test_run_trains_heads_for_numbers(rated: Path, cli: Cli) -> None:
    done = cli.ok("run", "--epochs", "2")
    assert "val. RMSE" in done.out
    runs = {run["head"] for run in cli.ok("compare", "--json").json["runs"]}
    assert runs == {"linear", "ridge"}


def test_a_number_head_that_was_changed_by_hand_is_refused(rated: Path) -> None:
    path = Path(f"reports/{RIDGE}/head.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["label_names"] == [] and document["numbers"]["interval"]["level"] == 0.9
    for changes in ({"numbers": None}, {"label_names": ["a"]}, {"numbers": {"mean": 0, "deviation": -1}}):
        path.write_text(json.dumps(document | changes), encoding="utf-8")
        with pytest.raises(HeadError):
            load_run(Path("reports"), RIDGE).head()
    edit_run(RIDGE, interval={"level": 2.0})
    with pytest.raises(HeadError, match="interval"):
        load_run(Path("reports"), RIDGE)


def test_predictions_that_were_damaged_are_refused(rated: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = featcache.load_run(Path("reports"), RIDGE)
    path = run.predictions_path("test")
    table = pq.read_table(path)
    odd = table.set_column(1, "label", pa.array([float("nan")] * len(table)))
    for content in (odd, table.drop_columns(["prediction"])):
        pq.write_table(content, path)
        with pytest.raises(HeadError, match="cannot read"):
            number_predictions(run, "test")
